"""Two packs on one base: both sets of blocks, or their mean."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from deepen.base.anatomy import Family
from deepen.base.checkpoint import DTYPES, FolderSource, TensorInfo
from deepen.base.memory import Described, auto_class
from deepen.base.model import Model, as_model, open_model
from deepen.base.streamed import check_complete
from deepen.common.errors import DeepenError, unknown
from deepen.common.progress import Progress, silent
from deepen.common.system import versions
from deepen.growth.base_files import write_base_files
from deepen.growth.config import grown_config
from deepen.growth.manifest import write_manifest
from deepen.growth.side_files import copy_side_files
from deepen.growth.staging import check_out, staged
from deepen.growth.write import ShardWriter
from deepen.packs.card import combined_card
from deepen.packs.pack import Pack, open_pack
from deepen.planning.layout import layout, new_tensors, origins
from deepen.planning.plan import Insert, Keep, Plan
from deepen.records.growth import FIELD, BaseIdentity, Lineage, Step, read_entry
from deepen.records.pack import AssemblyRecord

How = Literal["interleave", "average"]
"""How two packs become one model."""
HOWS: tuple[str, ...] = get_args(How)


@dataclass(frozen=True)
class Combined:
    """The stack of a combined model, and where its new blocks come from."""

    plan: Plan
    """The stack, as one growth of the base."""
    made_of: Mapping[int, list[tuple[Pack, int]]]
    """New block → the packs that it comes from, and its index in the model of each."""


def combine(
    base: str | Path,
    pack_a: str | Path,
    pack_b: str | Path,
    out: str | Path,
    *,
    how: How,
    revision: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: Progress = silent,
) -> AssemblyRecord:
    """Put the new blocks of two packs on one base.

    Args:
        base: The checkpoint that both were grown from: a folder or a hub id.
        pack_a: A pack.
        pack_b: Another.
        out: Folder to write; it appears when it is whole.
        how: ``interleave`` keeps both sets, in each gap those of A below those of B; ``average``
            takes the mean of each pair of tensors in float32, and needs two packs of one plan.
        revision: Branch, tag or commit on the hub.
        max_shard_size: Largest size of a weight file, in bytes or as in ``"5GB"``.
        overwrite: Replace an existing checkpoint at ``out``.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: A pack does not fit the base, or not the other; or the place is unusable.
    """
    if how not in HOWS:
        raise unknown("way to combine", how, HOWS)
    packs, out = [open_pack(Path(pack_a)), open_pack(Path(pack_b))], Path(out)
    model = open_model(base, revision, quantised=how == "interleave")  # a mean is computed
    source = model.source
    assert isinstance(source, FolderSource)
    for folder in (source.folder, *(parts.folder for parts in packs)):
        check_out(out, folder, overwrite=overwrite)
    for parts in packs:
        _check_usable(parts, source)
    combined = interleaved(*packs) if how == "interleave" else averaged(*packs)
    whole, step = _described(model, packs, combined, how)
    names = [parts.name for parts in packs]
    needed = sum(info.nbytes for info in whole.infos.values())
    with staged(out, {"combine": names}, needed, resume=False, overwrite=overwrite) as folder:
        written = _write_weights(model, combined, folder, max_shard_size, progress)
        _write_side_files(source, folder, whole.config)
        card = combined_card(step, names, source.folder, auto_class(source).__name__)
        _finish(model, combined, folder, card, written)
    return AssemblyRecord(
        out=str(out),
        name=whole.name,
        blocks=combined.plan.depth,
        new_blocks=combined.plan.new_blocks,
        weight_bytes=needed,
        proof=f"both packs fit fingerprint {source.fingerprint[:12]}",
    )


def _described(
    base: Model, packs: list[Pack], combined: Combined, how: str
) -> tuple[Described, Step]:
    """Describe the combined model, and how it is made, before anything is written.

    Raises:
        DeepenError: A pack does not hold what the blocks need, or transformers would not load the
            whole.
    """
    lineage = _lineage(base, packs, combined.plan, how)
    config = grown_config(base.config, base.resolved, base.family, combined.plan)
    config = base.whole_config(config) | {FIELD: lineage.model_dump(mode="json")}
    name = f"{base.source.name} with {' and '.join(parts.name for parts in packs)}"
    whole = Described(name, config, layout(base, combined.plan))
    _check_tensors(combined, whole.infos, base.family)
    check_complete(as_model(whole))
    return whole, lineage.steps[-1]


def _write_weights(
    base: Model, combined: Combined, folder: Path, max_shard_size: int | str, progress: Progress
) -> ShardWriter:
    """Stream the combined model's tensors into shards; return who wrote them."""
    infos = layout(base, combined.plan)
    with closing(ShardWriter(folder, infos, max_shard_size)) as writer:
        for done, (name, tensor) in enumerate(_tensors(base, combined)):
            progress("combining", done / len(infos))
            writer.write(name, tensor.to(DTYPES[infos[name].dtype]).contiguous())
        writer.finish()
    progress("combining", 1.0)
    return writer


def _write_side_files(base: FolderSource, folder: Path, config: Mapping[str, Any]) -> None:
    """Bring along what lies beside the base's weights, and write config.json."""
    copy_side_files(base.folder, folder)
    write_base_files(base, folder)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _finish(base: Model, combined: Combined, folder: Path, card: str, written: ShardWriter) -> None:
    """Write the card, and what was written."""
    assert isinstance(base.source, FolderSource)
    (folder / "README.md").write_text(card, encoding="utf-8")
    new = new_tensors(base.family, combined.plan.new_blocks, origins(base, combined.plan))
    write_manifest(folder, base.source, written.files, {n: written.digests[n] for n in new})


def _check_usable(parts: Pack, base: FolderSource) -> None:
    """Refuse a pack that is of another base, or of more than new blocks.

    Raises:
        DeepenError: It is one.
    """
    parts.check_fits(base)
    if changed := parts.record.changed:
        raise DeepenError(
            f"The pack {parts.name!r} also holds tensors of the base that were trained "
            f"({', '.join(changed[:3])}), which two packs cannot share; attach it alone."
        )


def _check_tensors(combined: Combined, infos: Mapping[str, TensorInfo], family: Family) -> None:
    """Hold what packs have to the tensors that the new blocks need.

    Raises:
        DeepenError: A pack lacks one, or has it in another shape.
    """
    for tensor, info in infos.items():
        index, suffix = family.split(tensor) or (-1, "")
        for parts, there in combined.made_of.get(index, []):
            found = parts.infos.get(family.name(there, suffix))
            if found is None or found.shape != info.shape:
                said = "nothing" if found is None else f"a tensor {list(found.shape)}"
                raise DeepenError(
                    f"The pack {parts.name!r} holds {said} as {family.name(there, suffix)!r}, and "
                    f"the block that it belongs to needs {list(info.shape)}; pack the grown "
                    f"checkpoint again."
                )


def interleaved(pack_a: Pack, pack_b: Pack) -> Combined:
    """Keep both sets of blocks: in each gap those of A, then those of B."""
    made_of: dict[int, list[tuple[Pack, int]]] = {}
    blocks: list[Keep | Insert] = []
    for below, gaps in enumerate(zip(_gaps(pack_a.plan), _gaps(pack_b.plan), strict=True)):
        if below:
            blocks.append(Keep(below - 1))
        in_a, in_b = ([(p, i) for i in gap] for p, gap in zip((pack_a, pack_b), gaps, strict=True))
        for parts, index in chain(in_a, in_b):
            made_of[len(blocks)] = [(parts, index)]
            blocks.append(parts.plan.blocks[index])
    return Combined(Plan(pack_a.plan.base_depth, tuple(blocks)), made_of)


def _gaps(plan: Plan) -> list[list[int]]:
    """Return the new blocks below the first kept block, then those above each."""
    gaps: list[list[int]] = [[]]
    for index, block in enumerate(plan.blocks):
        if isinstance(block, Keep):
            gaps.append([])
        else:
            gaps[-1].append(index)
    return gaps


def averaged(pack_a: Pack, pack_b: Pack) -> Combined:
    """Take the mean of each pair of blocks.

    Raises:
        DeepenError: The packs have different plans.
    """
    if pack_a.plan != pack_b.plan:
        raise DeepenError(
            f"The packs {pack_a.name!r} and {pack_b.name!r} have different plans, so their blocks "
            f"do not pair; pass --how interleave, or grow both with one placement."
        )
    pairs = {index: [(pack_a, index), (pack_b, index)] for index in pack_a.plan.new_blocks}
    return Combined(pack_a.plan, pairs)


def _tensors(base: Model, combined: Combined) -> Iterator[tuple[str, Tensor]]:
    """Yield the combined model's tensors, one at a time."""
    family = base.family
    for name, origin in origins(base, combined.plan).items():
        place = family.split(name)
        if place is None or place[0] not in combined.made_of:
            yield name, base.source.load(origin)
        else:
            index, suffix = place
            loads = (
                (parts.load, family.name(there, suffix)) for parts, there in combined.made_of[index]
            )
            yield name, _mean([load(tensor) for load, tensor in loads])


def _mean(tensors: list[Tensor]) -> Tensor:
    """Return the mean in float32; of what is no number, and of one tensor, the first as it is."""
    first, *others = tensors
    if not others or not first.is_floating_point():
        return first
    return sum((tensor.float() for tensor in others), first.float()) / len(tensors)


def _lineage(base: Model, packs: list[Pack], plan: Plan, how: str) -> Lineage:
    """Tell how the model was made: one growth, that names both packs' own."""
    before, lineages = read_entry(base.source.config), [parts.lineage for parts in packs]
    step = Step(
        method=how,
        reference="deepen combine",
        options={
            "packs": [
                {"name": parts.name, **lineage.model_dump(mode="json")}
                for parts, lineage in zip(packs, lineages, strict=True)
            ]
        },
        placement=None,
        seed=0,
        device="cpu",
        base=BaseIdentity(
            name=base.source.name,
            revision=base.source.revision,
            fingerprint=base.source.fingerprint,
            sha256=packs[0].record.base.sha256,
        ),
        plan=plan.to_json(),
        new_blocks=plan.new_blocks,
        trains="new_blocks",
        preserves_function=all(
            not lineage.trainings and all(step.preserves_function for step in lineage.steps)
            for lineage in lineages
        ),
        versions=versions(),
    )
    return Lineage(
        new_blocks=plan.new_blocks,
        steps=[*(before.steps if before else []), step],
        trainings=before.trainings if before else [],
    )
