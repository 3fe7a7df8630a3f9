"""The software that computes, and the memory that it takes."""

import resource
import sys
from importlib.metadata import version
from pathlib import Path


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
