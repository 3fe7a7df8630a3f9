"""The software that computes, and the memory that it takes."""

import ctypes
import errno
import os
import resource
import sys
from importlib.metadata import version
from pathlib import Path

_C_LIBRARY = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def versions() -> dict[str, str]:
    """Return the versions of the software that decides what the bytes are."""
    packages = ("deepen", "torch", "transformers", "safetensors", "POT", "numpy")
    return {package: version(package) for package in packages}


def peak_resident_bytes() -> int:
    """Return the process's peak resident memory so far.

    ``ru_maxrss`` will not do on Linux: a process inherits it from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_memory() -> None:
    """Give the system back what the C library keeps of freed tensors, where it knows how to.

    glibc keeps freed pieces of up to 32 MB for later, between others that are in use, so that a
    process that loads one tensor after the other seems to grow with their number.
    """
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


def exchange(one: Path, other: Path) -> bool:
    """Swap what two names stand for, in one step.

    Returns:
        Whether it was done: some systems and file systems cannot.

    Source: renameat2(2), ``RENAME_EXCHANGE``; the constants are Linux'.
    """
    rename = getattr(_C_LIBRARY, "renameat2", None)
    here, exchanging = -100, 2
    if rename is None:
        return False
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchanging) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
