"""Files that are whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepen.common.errors import DeepenError


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Give a place beside a file to write to; when the block ends well, it becomes the file.

    Args:
        file: What is written or replaced, by one rename; if the block fails, nothing is.
    """
    # Processes and machines that share a folder may write at once: each renames a file of its own.
    beside = file.with_name(f".{file.name}.{os.uname().nodename}.{os.getpid()}.unfinished")
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that nobody ever finds a part of it."""
    with whole(file) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def whole_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder beside ``out`` to write to; when the block ends well, it becomes ``out``.

    Args:
        out: What is written, by one rename; if the block fails, nothing is.
        overwrite: Replace a checkpoint, and nothing else, that lies there.

    Raises:
        DeepenError: Something lies there already.
    """
    if out.exists() and not overwrite:
        raise DeepenError(f"OUT {str(out)!r} exists; choose another place or pass --overwrite.")
    if out.exists() and not (out / "config.json").is_file():
        raise DeepenError(
            f"OUT {str(out)!r} is not a checkpoint, so --overwrite will not delete it; "
            f"choose another place."
        )
    beside = out.with_name(f".{out.name}.{os.uname().nodename}.{os.getpid()}.unfinished")
    beside.mkdir(parents=True)
    try:
        yield beside
        if out.exists():
            shutil.rmtree(out)
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
