"""Nothing at OUT until it is whole: a staging folder beside it, then one rename."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepen.common.errors import DeepenError

_REQUEST = "deepen-request.json"
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
        DeepenError: ``out`` exists, lies in the base's folder or holds it, or is no checkpoint.
    """
    target = out.resolve()
    if model is not None:
        base = model.resolve()
        if target == base or base in target.parents:
            raise DeepenError(f"OUT {str(out)!r} lies in MODEL's own folder; choose another place.")
        if target in base.parents:
            raise DeepenError(f"OUT {str(out)!r} holds MODEL, which would be lost; choose another.")
    if not out.exists():
        return
    if not overwrite:
        raise DeepenError(f"OUT {str(out)!r} exists; choose another place or pass --overwrite.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / marker).is_file()):
        what = "checkpoint" if marker == "config.json" else "pack"
        raise DeepenError(
            f"OUT {str(out)!r} is not a {what}, so --overwrite will not delete it; "
            f"choose another place."
        )


@contextmanager
def staged(
    out: Path, request: Mapping[str, Any], needed_bytes: int, *, resume: bool, overwrite: bool
) -> Iterator[Path]:
    """Give a folder to write into; it becomes ``out`` when the block ends well.

    A mistake in the input (DeepenError) leaves nothing behind. Any other end, a kill or a full
    disk, leaves the staging folder, under a name that nobody takes for a checkpoint, for
    ``resume``.

    Args:
        out: The final place.
        request: What determines the bytes; a killed run is only continued if it is the same.
        needed_bytes: Size of what will be written.
        resume: Continue a killed run.
        overwrite: Replace an existing ``out``, and discard what a killed run left.

    Raises:
        DeepenError: The disk is too small, or a killed run is in the way or of another request.
    """
    staging = out.parent / f".{out.name}.deepen-unfinished"
    if staging.exists():
        _check_unfinished(staging, request, resume=resume, overwrite=overwrite)
    _check_disk(staging, needed_bytes)
    created = [folder for folder in staging.parents if not folder.exists()]
    staging.mkdir(parents=True, exist_ok=True)
    (staging / _REQUEST).write_text(_canonical(request), encoding="utf-8")
    try:
        yield staging
    except DeepenError:
        shutil.rmtree(staging)
        for folder in created:
            folder.rmdir()
        raise
    (staging / _REQUEST).unlink()
    _publish(staging, out)


def _canonical(request: Mapping[str, Any]) -> str:
    """Write a request so that equal requests are equal texts."""
    return json.dumps(request, sort_keys=True, indent=2) + "\n"


def _check_unfinished(
    staging: Path, request: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Decide what becomes of a killed run's folder."""
    if resume:
        file = staging / _REQUEST
        if not file.is_file() or file.read_text(encoding="utf-8") != _canonical(request):
            raise DeepenError(
                f"The unfinished run in {str(staging)!r} had another base, method or options; "
                f"give the same ones, or pass --overwrite to start again."
            )
    elif overwrite:
        shutil.rmtree(staging)
    else:
        raise DeepenError(
            f"An unfinished run lies in {str(staging)!r}; "
            f"pass --resume to continue it, or --overwrite to start again."
        )


def _check_disk(staging: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk cannot hold."""
    there = sum(file.stat().st_blocks * 512 for file in staging.glob("*"))
    folder = staging.parent
    while not folder.exists():
        folder = folder.parent
    needed = needed_bytes + _SLACK_BYTES - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DeepenError(
            f"The disk of {str(folder)!r} has {free / 1e9:.2f} GB free and the checkpoint needs "
            f"{needed / 1e9:.2f} GB; free some space or choose another OUT."
        )


def _publish(staging: Path, out: Path) -> None:
    """Put the finished folder in place."""
    old = out.parent / f".{out.name}.deepen-replaced"
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    staging.rename(out)
    if old.exists():
        shutil.rmtree(old)
