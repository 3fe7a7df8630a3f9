"""Grow a checkpoint into a checkpoint, or a live module into a live module."""

import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from deepen import device, methods
from deepen import placement as placements
from deepen.anatomy.config import grown_config
from deepen.base import Base, as_base, open_base
from deepen.card import model_card
from deepen.checkpoint import FolderSource, ModuleSource, note_pickle
from deepen.fuse import Growth, grown_tensors
from deepen.methods.base import Progress, Request, parse_options, silent
from deepen.pairing import paired
from deepen.records import (
    FIELD,
    BaseIdentity,
    GrowRecord,
    Lineage,
    Step,
    peak_resident_bytes,
    read_lineage,
    versions,
)
from deepen.side_files import copy_side_files
from deepen.staging import check_out, staged
from deepen.write import ShardWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class How(TypedDict, total=False):
    """How to grow: the keyword arguments that ``plan``, ``grow`` and ``grow_model`` share."""

    method: str
    """Name of the method; by default ``opt-deus``."""
    new_layers: int | None
    """Number of new blocks; by default what the method's paper does, half of the base's."""
    placement: str | None
    """``top``, ``middle``, ``bottom``, ``top-bottom``, ``uniform``, ``quality``, ``quality-low`` or
    ``after:3,4,5``."""
    per_gap: int
    """How many new blocks a gap may take; by default 1."""
    options: Mapping[str, object] | None
    """The method's own options by name."""
    seed: int
    """Seed of everything random; by default 0."""
    device: str
    """Where new blocks are computed; by default ``auto``, a GPU if there is one."""


def preview(model: str | Path, *, revision: str | None = None, **how: Unpack[How]) -> GrowRecord:
    """Say what ``grow`` would do; nothing is written.

    Args:
        model: Checkpoint folder or hub id.
        revision: Branch, tag or commit on the hub.
        **how: See ``How``.

    Raises:
        DeepenError: The model or the request is not one that can be grown.
    """
    growth = _growth(open_base(model, revision), **how)
    return _record(growth, _config(growth))


def grow(
    model: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
    **how: Unpack[How],
) -> GrowRecord:
    """Grow a checkpoint and write the result as an ordinary Hugging Face checkpoint.

    Args:
        model: Checkpoint folder or hub id.
        out: Folder to write; it appears when it is whole.
        revision: Branch, tag or commit on the hub.
        max_shard_size: Largest size of a weight file, in bytes or as in ``"5GB"``.
        overwrite: Replace an existing checkpoint at ``out``.
        resume: Continue a killed run; the result has the bytes of an uninterrupted one.
        progress: Called with the stage and the finished share of it.
        **how: See ``How``.

    Returns:
        What was done.

    Raises:
        DeepenError: The model, the request or the place is unusable; nothing is then written.
    """
    started = time.perf_counter()
    out = Path(out)
    with _notes() as notes:
        base = open_base(model, revision)
        assert isinstance(base.source, FolderSource)
        check_out(out, base.source.folder, overwrite=overwrite)
        note_pickle(base.source)
        growth = _growth(base, **how)
        config = _config(growth)
        record = _record(growth, config)
        request = {"step": record.step.model_dump(), "max_shard_size": str(max_shard_size)}
        with staged(
            out, request, record.weight_bytes, resume=resume, overwrite=overwrite
        ) as folder:
            _write_weights(growth, folder, max_shard_size, progress)
            _write_side_files(base.source.folder, folder, config, record)
            if FolderSource(folder).infos != growth.layout:
                raise RuntimeError(f"what was written to {folder} does not read back as planned")
    return record.model_copy(
        update={
            "out": str(out),
            "notes": notes,
            "wall_seconds": time.perf_counter() - started,
            "peak_bytes": peak_resident_bytes(),
        }
    )


def grow_model(module: "PreTrainedModel", **how: Unpack[How]) -> "PreTrainedModel":
    """Grow a live model in memory, through the same code as ``grow``.

    Args:
        module: A causal language model of a known family; it is left as it is.
        **how: See ``How``.

    Returns:
        A new model of the same class, dtype and device that shares no memory with ``module``; its
        ``config.deepen`` is the entry that ``grow`` writes to config.json.

    Raises:
        DeepenError: The model or the request is not one that can be grown.
    """
    growth = _growth(as_base(ModuleSource(module, module.config.to_dict())), **how)
    grown: Any = type(module).from_pretrained(
        None,
        config=type(module.config).from_dict(_config(growth)),
        state_dict={name: tensor.clone() for name, tensor in grown_tensors(growth)},
        dtype=module.dtype,
    )
    return grown.to(device=module.device).train(module.training)


def _growth(base: Base, **how: Unpack[How]) -> Growth:
    """Turn a request into everything that determines the grown model.

    Raises:
        DeepenError: The method, an option, the placement or the device is unknown or does not fit.
    """
    method = methods.get(how.get("method", "opt-deus"))
    where = how.get("placement")
    request = Request(
        depth=base.depth,
        new_layers=how.get("new_layers"),
        placement=placements.parse(where) if where else None,
        per_gap=how.get("per_gap", 1),
        scores=partial(_scores, base, how.get("device", "auto")),
    )
    return Growth(
        base=base,
        plan=paired(method.place(request), base.anatomy, base.resolved),
        placement=where,
        method=method,
        options=parse_options(method, how.get("options") or {}),
        seed=how.get("seed", 0),
        device=device.choose(how.get("device", "auto")),
    )


def _scores(base: Base, where: str) -> list[float]:
    """Say how well the blocks around each gap align."""
    from deepen.alignment import gap_scores

    return gap_scores(base, device.choose(where))


def _config(growth: Growth) -> dict[str, Any]:
    """Return config.json of the grown model, lineage included."""
    base, before = growth.base, read_lineage(growth.base.source.config)
    step = Step(
        method=growth.method.name,
        reference=growth.method.reference,
        options=growth.options.model_dump(mode="json"),
        placement=growth.placement,
        seed=growth.seed,
        device=growth.device.type,
        base=BaseIdentity(
            name=base.source.name,
            revision=base.source.revision,
            fingerprint=base.source.fingerprint,
        ),
        plan=growth.plan.to_json(),
        new_blocks=growth.plan.new_blocks,
        trains=growth.method.trains,
        preserves_function=growth.method.keeps_function(growth.options),
        versions=versions(),
    )
    lineage = Lineage(new_blocks=step.new_blocks, steps=[*(before.steps if before else []), step])
    config = grown_config(base.source.config, base.resolved, base.family, growth.plan)
    return config | {FIELD: lineage.model_dump(mode="json")}


def _record(growth: Growth, config: Mapping[str, Any]) -> GrowRecord:
    """Count what the growth makes."""
    base, infos = growth.base, growth.layout.values()
    parameters = sum(info.parameters for info in infos)
    new = sum(base.parameters_of(block.nearest) for block in growth.plan.inserts)
    return GrowRecord(
        out=None,
        step=Lineage.model_validate(config[FIELD]).steps[-1],
        base_depth=base.depth,
        depth=growth.plan.depth,
        base_parameters=base.source.parameters,
        parameters=parameters,
        new_parameters=new,
        trainable_parameters=new if growth.method.trains == "new_blocks" else parameters,
        weight_bytes=sum(info.nbytes for info in infos),
    )


def _write_weights(
    growth: Growth, folder: Path, max_shard_size: int | str, progress: Progress
) -> None:
    """Stream the grown model's tensors into shards."""
    layout = growth.layout
    total = sum(info.nbytes for info in layout.values())
    with closing(ShardWriter(folder, layout, max_shard_size)) as writer:
        done = sum(info.nbytes for name, info in layout.items() if not writer.wants(name))
        for name, tensor in grown_tensors(growth, writer.wants, progress):
            progress(f"{growth.method.name}: writing", done / total)
            writer.write(name, tensor)
            done += layout[name].nbytes
        writer.finish()
    progress(f"{growth.method.name}: writing", 1.0)


def _write_side_files(
    base: Path, folder: Path, config: Mapping[str, Any], record: GrowRecord
) -> None:
    """Write config.json and the model card; bring the tokenizer and everything else along."""
    copy_side_files(base, folder)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(base, record), encoding="utf-8")


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect the warnings of a growth as sentences, equal ones counted."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    counted = Counter(str(warning.message) for warning in caught)
    notes.extend(text if n == 1 else f"{text} ({n} times)" for text, n in counted.items())
