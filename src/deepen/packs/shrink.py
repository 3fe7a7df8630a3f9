"""Take growths off again: the base, bit for bit, out of the grown model that holds it."""

import shutil
from pathlib import Path

from torch import Tensor

from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.common.progress import Progress, silent
from deepen.growth.base_files import BASE_FILES
from deepen.growth.staging import check_out, staged
from deepen.growth.write import write_file
from deepen.packs.grown import BaseInside, Grown, check_base_inside, open_grown
from deepen.records.pack import AssemblyRecord, BaseFiles


def shrink(
    grown: str | Path,
    out: str | Path,
    *,
    growths: int | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> AssemblyRecord:
    """Write the base that a grown checkpoint holds, weight files and config.json byte for byte.

    Args:
        grown: The grown checkpoint, trained or not.
        out: Folder to write; it appears when it is whole.
        growths: How many growths to take off, the latest ones; by default all.
        force: Write kept tensors as they are, though training may have changed them.
        overwrite: Replace an existing checkpoint at ``out``.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The checkpoint was not grown, its kept tensors are not the base's and ``force``
            is not given, what it takes to write the base's files is not there, or the place is
            unusable.
    """
    opened, out = open_grown(Path(grown), growths), Path(out)
    check_out(out, opened.folder, overwrite=overwrite)
    files = opened.base_files
    if files is None:
        raise DeepenError(
            f"{opened.model.source.name} has no {BASE_FILES} beside it, which says how the base "
            f"was stored; copy the one of the grown checkpoint beside it, or grow the base again."
        )
    inside = BaseInside(opened, files)
    notes = _problems(opened, force)
    needed = sum(info.nbytes for info in inside.infos.values())
    same = {"shrink": opened.model.source.name}
    with staged(out, same, needed, resume=False, overwrite=overwrite) as folder:
        _write_weights(inside, files, folder, progress)
        notes += _write_files(opened.folder, files, folder)
    return AssemblyRecord(
        out=str(out),
        name=opened.base.name,
        blocks=opened.plan.base_depth,
        new_blocks=[],
        weight_bytes=needed,
        proof="none, by --force" if force else f"fingerprint {opened.base.fingerprint[:12]}",
        notes=notes,
    )


def _problems(grown: Grown, force: bool) -> list[str]:
    """Tell what is not the base's.

    Raises:
        DeepenError: Something is not, and ``force`` is not given.
    """
    problem = check_base_inside(grown)
    if grown.changed:
        problem = (
            f"Training may have changed tensors that {grown.model.source.name} keeps of its base "
            f"({grown.named()})"
        )
    if problem and not force:
        raise DeepenError(
            f"{problem}, so the base cannot be had back from it; take the base itself, or pass "
            f"--force to write the tensors as they are."
        )
    return [f"{problem}; they were written as they are."] if problem else []


def _write_weights(inside: BaseInside, files: BaseFiles, folder: Path, progress: Progress) -> None:
    """Write the base's weight files."""
    done = [0]

    def load(name: str) -> Tensor:
        progress("shrinking", done[0] / len(inside.infos))
        done[0] += 1
        return inside.load(name)

    for file, header in files.weights.items():
        write_file(folder / file, header, load)
    progress("shrinking", 1.0)


def _write_files(grown: Path, files: BaseFiles, folder: Path) -> list[str]:
    """Write everything beside the weights; tell what is no longer the base's."""
    for name, text in files.texts.items():
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    notes = []
    for name, digest in files.copied.items():
        if not (grown / name).is_file():
            notes.append(f"{name} of the base is no longer there.")
            continue
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(grown / name, folder / name)
        if digest_of(folder / name) != digest:
            notes.append(f"{name} is no longer the base's; it was copied as it is.")
    return notes
