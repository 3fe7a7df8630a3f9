"""Files that are whole or not there, also after a power cut."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepen.common.bounded import check_regular

_NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP)


_LONGEST_NAME = 255
"""Bytes of a file's name, on the file systems there are."""


def leads_out(name: str) -> bool:
    """Whether a name that one of a folder's files gives is not that of a file inside the folder."""
    path, too_long = Path(name), len(name.encode(errors="replace")) > _LONGEST_NAME
    return path.is_absolute() or ".." in path.parts or path == Path() or "\0" in name or too_long


def sync_file(file: Path) -> None:
    """Bring a file's content to the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: until then a power cut may undo a rename in it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder may be written to and not be readable
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything in it to the disk."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(path, name))
        sync_folder(Path(path))


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it, to stay after a power cut.

    Returns:
        Those that were not there, the lowest first.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in made:
        sync_folder(place.parent)
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove what ``make_folders`` made, as far as nothing has come to lie in it."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Give a place beside a file to write to; when the block ends well, it becomes the file.

    Args:
        file: What is written or replaced, by one rename; if the block fails, nothing is.

    Raises:
        DeepenError: A folder, a pipe or a device is there, which a rename would take away.
    """
    check_regular(file)
    # Processes and machines that share a folder may write at once: each renames a file of its own.
    beside = file.with_name(f".{file.name}.{os.uname().nodename}.{os.getpid()}.unfinished")
    try:
        yield beside
        sync_file(beside)
        beside.replace(file)
        sync_folder(file.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that nobody ever finds a part of it."""
    with whole(file) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
