"""One writer at a place: a lock that the kernel gives back when its process ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from deepen.common.errors import DeepenError
from deepen.common.files import make_folders, remove_empty

_PATIENCE_SECONDS = 0.2
"""For a run that is just ending."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep every other process from writing to a place while the block runs.

    The lock is a hidden file beside the place, and goes with it. A process that is killed leaves
    the file and not the lock.

    Args:
        out: The file or folder that is written; links to it are followed, so that it has one lock
            by whatever name. Folders above it are made, and removed if nothing was written.

    Raises:
        DeepenError: Another process is writing there.
    """
    place = out.resolve()
    made = make_folders(place.parent)
    file = place.with_name(f".{place.name}.deepen-lock")
    try:
        lock = FileLock(file, timeout=_PATIENCE_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise DeepenError(
                f"Another run{_holder(file)} is writing {str(out)!r}; wait until it has ended, or "
                f"choose another place."
            ) from None
        try:
            # In the form of filelock's own, where a file system knows no locks.
            file.write_text(f"{os.getpid()}\n{os.uname().nodename}\n", encoding="utf-8")
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held: who waits for it takes a new one
            lock.release()
    finally:
        remove_empty(made)


def _holder(file: Path) -> str:
    """Name the process that holds a lock, as far as it is known."""
    try:
        process, machine = file.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return ""
    return (
        f" (process {process})"
        if machine == os.uname().nodename
        else (f" (process {process} on {machine})")
    )
