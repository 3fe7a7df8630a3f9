"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
