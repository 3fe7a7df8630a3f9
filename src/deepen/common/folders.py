"""Folders that are whole or not there: made in a hidden place beside, then put in place at once.

The hidden place, the work folder, is nobody else's: another user could lay bytes into it that would
be taken for ours. A kill at any moment leaves either a work folder that is put away or continued by
the next run, or nothing.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepen.common.errors import DeepenError
from deepen.common.files import sync_folder, sync_tree, write_whole
from deepen.common.lock import locked
from deepen.common.system import exchange

_FOLDER = "whole"
_NUMBER = "deepen-inode"
_REPLACED = "replaced"
_KINDS = {"config.json": "checkpoint", "scan.json": "scan"}
"""File by which a folder is known → what it is then."""


def check_place(out: Path, *, overwrite: bool, marker: str = "config.json") -> Path:
    """Refuse a place that cannot be written to, or that holds something.

    Args:
        out: The folder to be written.
        overwrite: Whether what lies there may be replaced.
        marker: The file by which what may be replaced is known.

    Returns:
        The folder that ``out`` names, links followed: it is what is replaced, and never a link.

    Raises:
        DeepenError: It cannot be made, is being written to, exists, or is something else.
    """
    try:
        place = out.resolve()
        with locked(out):
            _settle(place)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or "links in a circle"
        raise DeepenError(
            f"OUT {str(out)!r} cannot be written ({reason}); choose another place."
        ) from None
    if not place.exists():
        return place
    if not overwrite:
        raise DeepenError(f"OUT {str(out)!r} exists; choose another place or pass --overwrite.")
    what = _KINDS.get(marker, "pack")
    if not place.is_dir() or (any(place.iterdir()) and not (place / marker).is_file()):
        raise DeepenError(
            f"OUT {str(out)!r} is not a {what}, so --overwrite will not delete it; "
            f"choose another place."
        )
    if place.is_mount():
        raise DeepenError(
            f"OUT {str(out)!r} is where a disk is mounted and cannot be replaced; name a folder "
            f"in it."
        )
    return place


def work_of(place: Path) -> Path:
    """Return the hidden folder in which what will lie at a place is made."""
    return place.with_name(f".{place.name}.deepen-unfinished")


def check_own(work: Path) -> None:
    """Refuse a work folder that another user may have laid there.

    Raises:
        DeepenError: It is one.
    """
    if work.is_symlink() or not work.is_dir() or work.stat().st_uid != os.geteuid():
        raise DeepenError(
            f"{str(work)!r} was not made by a run of yours; remove it, or choose another OUT."
        )


def open_work(work: Path) -> Path:
    """Make a work folder, unless it is there.

    Returns:
        The folder in it that ``publish`` puts in place.
    """
    work.mkdir(mode=0o700, exist_ok=True)
    check_own(work)
    folder = work / _FOLDER
    folder.mkdir(exist_ok=True)
    return folder


def publish(folder: Path, place: Path) -> None:
    """Put a finished folder in place, by one step that a power cut or a kill cannot divide.

    Args:
        folder: What ``open_work`` returned.
        place: Where it goes; what lies there comes to lie in the work folder.
    """
    sync_tree(folder)
    write_whole(folder.parent / _NUMBER, str(folder.stat().st_ino))
    if not place.exists():
        folder.rename(place)
    elif not exchange(folder, place):
        place.rename(folder.parent / _REPLACED)
        folder.rename(place)
    sync_folder(place.parent)


def is_published(place: Path) -> bool:
    """Whether what the work folder of a place was for lies there."""
    try:
        return int((work_of(place) / _NUMBER).read_text()) == place.stat().st_ino
    except (OSError, ValueError):
        return False


def discard(work: Path) -> None:
    """Remove a work folder; a kill meanwhile leaves it known for what it is."""
    for inside in work.iterdir():
        if inside.is_dir():
            shutil.rmtree(inside)
        elif inside.name != _NUMBER:
            inside.unlink()
    shutil.rmtree(work)


def _settle(place: Path) -> None:
    """End what a kill interrupted while a folder was being put in place."""
    work = work_of(place)
    if not work.exists() or work.is_symlink() or work.stat().st_uid != os.geteuid():
        return
    if is_published(place) or not any(work.iterdir()):
        discard(work)
    elif (work / _REPLACED).is_dir() and not place.exists():
        (work / _REPLACED).rename(place)
        sync_folder(place.parent)


@contextmanager
def whole_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write to; when the block ends well, it becomes ``out``.

    Args:
        out: What is written, at once; if the block fails, nothing is.
        overwrite: Replace a checkpoint, and nothing else, that lies there.

    Raises:
        DeepenError: Something lies there already, or it cannot be written to.
    """
    place = check_place(out, overwrite=overwrite)
    with locked(out):
        work = work_of(place)
        if work.exists() or work.is_symlink():  # a kill left it
            check_own(work)
            discard(work)
        folder = open_work(work)
        try:
            yield folder
            publish(folder, place)
        finally:
            discard(work)
