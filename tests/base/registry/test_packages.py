"""Wheels of the registry: fetched once, checked, joined; the registry itself is not asked."""

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from deepen.base.registry import packages
from deepen.base.registry.packages import Wheel, cache, fetched, join_members, read_member
from deepen.common.errors import DeepenError


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A registry that is a folder, for pip to look in; returns what puts a wheel there."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    def put(package: str, members: dict[str, bytes]) -> Wheel:
        module = package.replace("-", "_")
        file, about = index / f"{module}-1.0-py3-none-any.whl", f"{module}-1.0.dist-info"
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.writestr(
                f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
            )
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", "")
        return Wheel(package, "1.0", hashlib.sha256(file.read_bytes()).hexdigest())

    return put


def test_a_wheel_is_fetched_once(registry, tmp_path: Path) -> None:
    wheel = registry("some-model", {"data/part": b"content"})
    assert read_member(wheel, "data/part") == b"content"
    shutil.rmtree(tmp_path / "index")
    assert read_member(wheel, "data/part") == b"content"
    assert fetched(wheel).is_relative_to(cache())


def test_parts_are_joined_in_order_and_checked(registry, tmp_path: Path) -> None:
    one, two = registry("part-one", {"a": b"first "}), registry("part-two", {"b": b"second"})
    whole = hashlib.sha256(b"first second").hexdigest()
    join_members([(one, "a"), (two, "b")], whole, tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == b"first second"
    with pytest.raises(DeepenError, match=r"part-two==1\.0, part-one==1\.0"):
        join_members([(two, "b"), (one, "a")], whole, tmp_path / "turned")
    assert not list(tmp_path.glob("*turned*"))


def test_another_file_of_that_name_is_refused(registry) -> None:
    wheel = registry("some-model", {"data": b"right"})
    registry("some-model", {"data": b"wrong"})
    with pytest.raises(DeepenError, match="SHA-256 differs"):
        fetched(wheel)
    assert not list(cache().rglob("*.whl"))


def test_a_file_that_was_damaged_in_the_cache_is_fetched_anew(registry) -> None:
    wheel = registry("some-model", {"data": b"content"})
    fetched(wheel).write_bytes(b"damaged")
    assert read_member(wheel, "data") == b"content"


def test_a_registry_out_of_reach_is_one_sentence(registry) -> None:
    with pytest.raises(
        DeepenError, match=r"^missing==2\.0 could not .*\(No matching .*\.$"
    ) as raised:
        fetched(Wheel("missing", "2.0", "0" * 64))
    assert "\n" not in str(raised.value)


def test_a_python_without_pip_is_one_sentence(registry, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DeepenError, match="No module named pip"):
        fetched(Wheel("missing", "2.0", "0" * 64))
