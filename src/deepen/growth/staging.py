"""Nothing at OUT until it is whole: a hidden folder beside it, which a kill leaves to resume."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepen.common.bounded import read_text
from deepen.common.errors import DeepenError
from deepen.common.files import write_whole
from deepen.common.folders import (
    check_own,
    check_place,
    discard,
    is_published,
    open_work,
    publish,
    work_of,
)
from deepen.common.lock import locked

_REQUEST = "deepen-request.json"
_WRITTEN = "deepen-written.json"
_SLACK_BYTES = 2**24


def check_out(
    out: Path, model: Path | None, *, overwrite: bool, marker: str = "config.json"
) -> None:
    """Refuse a place that must not be written to.

    Args:
        out: Where the grown model shall go.
        model: The base's folder, if it has one.
        overwrite: Whether an existing checkpoint may be replaced.
        marker: The file by which one is known.

    Raises:
        DeepenError: ``out`` lies in the base's folder or holds it, exists, is no checkpoint, cannot
            be made, or is being written to by another run.
    """
    if model is not None:
        base, target = model.resolve(), Path(os.path.realpath(out))
        if target == base or base in target.parents:
            raise DeepenError(f"OUT {str(out)!r} lies in MODEL's own folder; choose another place.")
        if target in base.parents:
            raise DeepenError(f"OUT {str(out)!r} holds MODEL, which would be lost; choose another.")
    check_place(out, overwrite=overwrite, marker=marker)


@contextmanager
def staged(
    out: Path,
    request: Mapping[str, Any],
    needed_bytes: int,
    *,
    resume: bool,
    overwrite: bool,
    resumable: bool = False,
) -> Iterator[Path]:
    """Give a folder to write into; it becomes ``out`` when the block ends well.

    Nothing is left behind by a mistake in the input (DeepenError), nor by any failure of what
    cannot be resumed. What can be is left by a kill or a full disk, under a name that nobody takes
    for a checkpoint.

    Args:
        out: The final place; of a link, what it leads to.
        request: What determines the bytes; a killed run is only continued if it is the same.
        needed_bytes: Size of what will be written.
        resume: Continue a killed run.
        overwrite: Replace an existing ``out``, and discard what a killed run left to resume.
        resumable: Whether there is a ``resume`` to be asked for.

    Raises:
        DeepenError: ``out`` exists, the disk is too small, another run writes there, or a killed
            run is in the way or of another request.
    """
    place = out.resolve()
    work = work_of(place)
    with locked(out):
        if place.exists() and not overwrite:  # it may have come since `check_out`
            raise DeepenError(f"OUT {str(out)!r} exists; choose another place.")
        if work.exists() or work.is_symlink():
            anew = overwrite or not resumable
            _check_unfinished(work, request, resume=resume, anew=anew)
        _check_disk(work, needed_bytes)
        folder, kept, done = open_work(work), False, False
        try:
            write_whole(work / _REQUEST, _canonical(request))
            kept = resumable
            yield folder
            publish(folder, place)
            done = True
            discard(work)
        except DeepenError:
            discard(work)
            raise
        except BaseException as error:
            if done or is_published(place):
                error.add_note(f"{str(out)!r} is whole")
            elif kept:
                error.add_note(
                    "what is finished is kept, and the same command with --resume goes on"
                )
                raise
            else:
                error.add_note(f"nothing was written to {str(out)!r}")
            discard(work)
            raise


def written_of(folder: Path) -> Path:
    """Return the file beside a staged folder that tells what was written to it, to be resumed."""
    return folder.with_name(_WRITTEN)


def _canonical(request: Mapping[str, Any]) -> str:
    """Write a request so that equal requests are equal texts."""
    return json.dumps(request, sort_keys=True, indent=2) + "\n"


def _check_unfinished(work: Path, request: Mapping[str, Any], *, resume: bool, anew: bool) -> None:
    """Decide what becomes of a killed run's folder."""
    check_own(work)
    file = work / _REQUEST
    if (anew and not resume) or not file.is_file():  # without it nothing was begun
        discard(work)
    elif resume:
        if read_text(file) != _canonical(request):
            raise DeepenError(
                f"The unfinished run in {str(work)!r} had another base, method or options, or the "
                f"base's files were changed since; give the same ones, or pass --overwrite to "
                f"start again."
            )
    else:
        raise DeepenError(
            f"An unfinished run lies in {str(work)!r}; "
            f"pass --resume to continue it, or --overwrite to start again."
        )


def _check_disk(work: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk cannot hold."""
    there = sum(file.stat().st_blocks * 512 for file in work.rglob("*") if file.is_file())
    needed = needed_bytes + _SLACK_BYTES - there
    free = shutil.disk_usage(work.parent).free
    if needed > free:
        raise DeepenError(
            f"The disk of {str(work.parent)!r} has {free / 1e9:.2f} GB free and the checkpoint "
            f"needs {needed / 1e9:.2f} GB; free some space or choose another OUT."
        )
