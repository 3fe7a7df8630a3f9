"""The demo's text: the sources of the Python standard library on this machine."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepen.common.errors import DeepenError

# Installed packages, tests, generated tables and pages of documentation are not library code.
_LEFT_OUT = frozenset(
    {
        *("site-packages", "dist-packages", "__pycache__"),
        *("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"),
        *("encodings", "pydoc_data"),
    }
)


@dataclass(frozen=True)
class Corpus:
    """Documents, divided by file; nothing of a held-out file is ever trained on."""

    training: tuple[str, ...]
    """Texts to train on, in the order of their paths."""
    held_out: tuple[str, ...]
    """Texts to measure perplexity on."""
    fingerprint: str
    """SHA-256 over the path and the bytes of every file, sorted by path."""

    @property
    def characters(self) -> int:
        """Length of all training texts."""
        return sum(map(len, self.training))


def read_corpus(file_share: float, held_out_share: float, root: str | Path | None = None) -> Corpus:
    """Read Python sources and divide them.

    A file's path alone decides, through a hash, whether the file is used and whether it is held
    out, so that a file which is added or removed moves no other.

    Args:
        file_share: Share of the files to use.
        held_out_share: Share of those to hold out.
        root: Folder to read; by default that of the running Python's standard library.

    Raises:
        DeepenError: There are too few sources to train on and to hold out.
    """
    folder = Path(root or sysconfig.get_paths()["stdlib"])
    training: list[str] = []
    held_out: list[str] = []
    digest = hashlib.sha256()
    for name in sorted(file.relative_to(folder).as_posix() for file in _sources(folder)):
        use, hold_out = _draws(name)
        if use >= file_share:
            continue
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        part = held_out if hold_out < held_out_share else training
        part.append(content.decode("utf-8", errors="replace"))
    if not training or not held_out:
        raise DeepenError(
            f"The Python standard library of this machine has no sources in {str(folder)!r} to "
            f"train on; run the demo with a Python that was installed with them."
        )
    return Corpus(tuple(training), tuple(held_out), digest.hexdigest())


def _sources(folder: Path) -> Iterator[Path]:
    """Find library code below a folder."""
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        yield from (Path(parent, name) for name in files if name.endswith(".py"))


def _draws(name: str) -> tuple[float, float]:
    """Draw two numbers in [0, 1) from a path, the same on every machine."""
    digest = hashlib.sha256(name.encode()).digest()
    first, second = digest[:8], digest[8:16]
    return int.from_bytes(first, "big") / 2**64, int.from_bytes(second, "big") / 2**64
