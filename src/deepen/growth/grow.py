"""Grow a checkpoint into a checkpoint, or a live module into a live module."""

import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.base.checkpoint import FolderSource, ModuleSource, Source
from deepen.base.identity import sha256_of, state_of
from deepen.base.memory import auto_class
from deepen.base.model import as_model, open_model
from deepen.base.weights.values import magnitude
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.common.system import peak_resident_bytes
from deepen.growth.base_files import write_base_files
from deepen.growth.card import model_card
from deepen.growth.fuse import Copied, Growth, Soundness, grown_tensors, kept, parts
from deepen.growth.manifest import write_manifest
from deepen.growth.preview import (
    check_loads,
    config_of,
    grow_record,
    lineage_of,
    requested,
    resolve,
)
from deepen.growth.side_files import copy_side_files, tell
from deepen.growth.staging import check_out, staged, written_of
from deepen.growth.write import ShardWriter
from deepen.planning.layout import new_tensors
from deepen.records.growth import GrowRecord, GrowRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def grow(
    model: str | Path,
    out: str | Path,
    request: GrowRequest | None = None,
    *,
    revision: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
    **how: Any,
) -> GrowRecord:
    """Grow a checkpoint and write the result as an ordinary Hugging Face checkpoint.

    Args:
        model: Checkpoint folder or hub id.
        out: Folder to write; it appears when it is whole.
        request: How to grow.
        revision: Branch, tag or commit on the hub.
        max_shard_size: Largest size of a weight file, in bytes or as in ``"5GB"``.
        overwrite: Replace an existing checkpoint at ``out``.
        resume: Continue a killed run; the result has the bytes of an uninterrupted one.
        progress: Called with the stage and the finished share of it.
        **how: Fields of ``GrowRequest``, instead of ``request`` or over it.

    Returns:
        What was done.

    Raises:
        DeepenError: The model, the request or the place is unusable; nothing is then written.
    """
    started = time.perf_counter()
    asked, out = requested(request, how), Path(out)
    with _notes() as notes:
        base = open_model(model, revision, quantised=True)
        assert isinstance(base.source, FolderSource)
        before = state_of(base.source)
        check_out(out, base.source.folder, overwrite=overwrite)
        tell(base.source)
        growth = resolve(base, asked, progress)
        lineage = lineage_of(growth)
        record = grow_record(growth, lineage)
        check_loads(growth, config_of(growth, lineage))
        same = {"step": record.step.model_dump(), "shard": str(max_shard_size), "base": before}
        again = {"resume": resume, "overwrite": overwrite, "resumable": True}
        with staged(out, same, record.weight_bytes, **again) as folder:
            written = _write_weights(growth, folder, max_shard_size, progress)
            _check_unchanged(base.source, before)
            record = _write_side_files(growth, base.source, folder, record, written)
            manifest = _write_manifest(growth, base.source, folder, written)
    return record.model_copy(
        update={
            "out": str(out),
            "manifest": manifest,
            "proofs": list(growth.prepared.proofs),
            "notes": [*record.notes, *notes],
            "wall_seconds": time.perf_counter() - started,
            "peak_bytes": peak_resident_bytes(),
        }
    )


def grow_model(
    module: "PreTrainedModel",
    request: GrowRequest | None = None,
    **how: Any,
) -> "PreTrainedModel":
    """Grow a live model in memory, through the same code as ``grow``.

    Args:
        module: A causal language model of a known family; it is left as it is.
        request: How to grow.
        **how: Fields of ``GrowRequest``, instead of ``request`` or over it.

    Returns:
        A new model of the same class, dtype and device that shares no memory with ``module``; its
        ``config.deepen`` is the entry that ``grow`` writes to config.json.

    Raises:
        DeepenError: The model or the request is not one that can be grown.
    """
    base = as_model(ModuleSource(module, module.config.to_dict()))
    growth = resolve(base, requested(request, how))
    grown: Any = type(module).from_pretrained(
        None,
        config=type(module.config).from_dict(config_of(growth, lineage_of(growth))),
        state_dict={name: tensor.clone() for name, tensor in grown_tensors(growth)},
        dtype=module.dtype,
    )
    return grown.to(device=module.device).train(module.training)


def _write_weights(
    growth: Growth, folder: Path, max_shard_size: int | str, progress: Progress
) -> ShardWriter:
    """Stream the grown model's tensors into shards.

    Returns:
        Who wrote them, with the digests of what passed.
    """
    layout = growth.layout
    total, sound = sum(info.nbytes for info in layout.values()), Soundness(growth)
    with closing(ShardWriter(folder, layout, max_shard_size, written_of(folder))) as writer:
        done = sum(info.nbytes for name, info in layout.items() if not writer.wants(name))
        for name, made in parts(growth, writer.wants):
            progress(f"{growth.method.name}: writing", done / total)
            if isinstance(made, Copied):
                sound.see(name, made.origin, _copy(growth.base.source, made.origin, writer, name))
            else:
                writer.write(name, made)
            done += layout[name].nbytes
        writer.finish()
    sound.warn()
    progress(f"{growth.method.name}: writing", 1.0)
    return writer


def _copy(source: Source, origin: str, writer: ShardWriter, name: str) -> float:
    """Write one of the base's tensors under a name, and return the largest value in it, or NaN."""
    if (stored := source.stored(origin)) is not None:
        return writer.copy(name, stored)
    tensor = source.load(origin)
    writer.write(name, tensor)
    return magnitude(tensor)


def _check_unchanged(source: FolderSource, before: list[list[str | int]]) -> None:
    """Refuse a base that was changed while it was read: what was made is of two models.

    Raises:
        DeepenError: It was.
    """
    if state_of(source) != before:
        raise DeepenError(
            f"MODEL {source.name!r} was changed while it was read; wait until nothing writes to it "
            f"and grow again."
        )


def _write_side_files(
    growth: Growth, source: FolderSource, folder: Path, record: GrowRecord, written: ShardWriter
) -> GrowRecord:
    """Write config.json and the model card; bring the tokenizer and everything else along.

    Returns:
        The record, the base's SHA-256 in it.
    """
    known = {origin: written.digests[name] for name, origin in kept(growth).items()}
    lineage = lineage_of(growth, sha256_of(source, known))
    config = config_of(growth, lineage)
    record = record.model_copy(update={"step": lineage.steps[-1]})
    copy_side_files(source.folder, folder)
    write_base_files(source, folder)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    quantised = source.quantisation.method if source.quantisation else None
    loader = auto_class(source).__name__
    card = model_card(source.folder, record, growth.base.blocks_path, quantised, loader)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return record


def _write_manifest(
    growth: Growth, source: FolderSource, folder: Path, written: ShardWriter
) -> str:
    """Read back how tensors lie, and write what was written; return the SHA-256 of that."""
    if FolderSource(folder).infos != growth.layout:
        raise RuntimeError(f"what was written to {folder} does not read back as planned")
    new = new_tensors(growth.base.family, growth.plan.new_blocks, growth.layout)
    return write_manifest(folder, source, written.files, {n: written.digests[n] for n in new})


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect the warnings of a growth as sentences, equal ones counted."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    counted = Counter(str(warning.message) for warning in caught)
    notes.extend(text if n == 1 else f"{text} ({n} times)" for text, n in counted.items())
