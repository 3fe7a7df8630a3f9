"""Put new blocks back on their base: the grown checkpoint again, byte for byte."""

import shutil
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from deepen.base.checkpoint import DTYPES, FolderSource, TensorInfo
from deepen.base.model import Model, open_model
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.common.progress import Progress, silent
from deepen.growth.base_files import relative_files
from deepen.growth.staging import check_out, staged
from deepen.growth.write import layout_of, write_file
from deepen.packs.pack import FILES, Pack, open_pack
from deepen.planning.layout import origins
from deepen.records.pack import AssemblyRecord


def attach(
    base: str | Path,
    pack: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> AssemblyRecord:
    """Write the grown checkpoint that a pack was taken off, byte for byte.

    Args:
        base: The checkpoint that was grown: a folder or a hub id.
        pack: The pack.
        out: Folder to write; it appears when every file in it has the recorded SHA-256.
        revision: Branch, tag or commit on the hub.
        overwrite: Replace an existing checkpoint at ``out``.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The pack does not fit the base, or the place is unusable.
    """
    parts, out = open_pack(Path(pack)), Path(out)
    model = open_model(base, revision, quantised=True)
    source, record = model.source, parts.record
    assert isinstance(source, FolderSource)
    for folder in (source.folder, parts.folder):
        check_out(out, folder, overwrite=overwrite)
    parts.check_fits(source)
    _check_layout(model, parts)
    same, needed = {"attach": parts.name}, record.grown_weight_bytes
    with staged(out, same, needed, resume=False, overwrite=overwrite) as folder:
        _write_weights(model, parts, folder, progress)
        notes = _bring_files(source.folder, parts, folder)
        _check(parts, folder, progress)
    return AssemblyRecord(
        out=str(out),
        name=record.name,
        blocks=parts.plan.depth,
        new_blocks=record.new_blocks,
        weight_bytes=record.grown_weight_bytes,
        proof=f"{len(record.files) - len(notes)} files have the SHA-256 of the grown checkpoint's",
        notes=notes,
    )


def _check_layout(base: Model, parts: Pack) -> None:
    """Hold the weight files that a pack describes to what its plan makes of the base.

    Raises:
        DeepenError: They are of other tensors.
    """
    laid: dict[str, TensorInfo] = {}
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        for header in parts.record.weights.values():
            laid |= layout_of(header)
    fits = parts.plan.base_depth == base.depth
    names, infos = origins(base, parts.plan) if fits else {}, base.source.infos
    expected = {n: (parts.infos.get(n) or infos[names[n]]).shape for n in names}
    stored = all(info.dtype in DTYPES for info in laid.values())  # training may have changed it
    if not fits or not stored or {n: info.shape for n, info in laid.items()} != expected:
        raise DeepenError(
            f"The pack {parts.name!r} describes other tensors than its plan makes of the base "
            f"(plan or weights in pack.json); fetch the pack again."
        )


def _write_weights(base: Model, parts: Pack, folder: Path, progress: Progress) -> None:
    """Write the weight files: the pack's tensors, and the base's for all others."""
    names, done = origins(base, parts.plan), [0]

    def load(name: str) -> Tensor:
        progress("attaching", done[0] / len(names))
        done[0] += 1
        return parts.load(name) if name in parts.infos else base.source.load(names[name])

    for file, header in parts.record.weights.items():
        write_file(folder / file, header, load)
    progress("attaching", 1.0)


def _bring_files(base: Path, parts: Pack, folder: Path) -> list[str]:
    """Copy the files beside the weights; tell which of the base's are not what they were."""
    notes = []
    for name in parts.record.from_base:
        if not (base / name).is_file():
            notes.append(f"{name} is missing in the base, and so here.")
            continue
        _copy(base / name, folder / name)
        if digest_of(folder / name) != parts.record.files.get(name):
            notes.append(f"{name} of the base is not the one that was there when it was grown.")
    own = parts.folder / FILES
    for name in relative_files(own):
        _copy(own / name, folder / name)
    return notes


def _copy(source: Path, target: Path) -> None:
    """Copy a file, and make the folder for it."""
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


def _check(parts: Pack, folder: Path, progress: Progress) -> None:
    """Hold what was written to the grown checkpoint's digests, but for the base's own files.

    Raises:
        DeepenError: A file differs.
    """
    record = parts.record
    own = [name for name in record.files if name not in record.from_base]
    for done, name in enumerate(own):
        progress("comparing", done / len(own))
        if not (folder / name).is_file() or digest_of(folder / name) != record.files[name]:
            raise DeepenError(
                f"{name} would not be the grown checkpoint's: the base was changed in the middle "
                f"of a tensor, or the pack is damaged; fetch both again."
            )
    progress("comparing", 1.0)
