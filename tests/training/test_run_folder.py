"""A full disk is told, and nothing else is taken for one."""

import errno
from pathlib import Path

import pytest

from deepen.common.errors import DeepenError
from deepen.training.run_folder import RunFolder


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    refusal = pytest.raises(DeepenError, match="is full; the last whole checkpoint")
    with refusal, folder.full_disk_explained():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_torch_s_word_for_a_full_disk_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "not" / "yet" / "there")

    def fail() -> None:
        with folder.full_disk_explained():
            raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    with pytest.raises(RuntimeError, match="Pytorch"):
        fail()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 0}))
    with pytest.raises(DeepenError, match="is full"):
        fail()


def test_what_a_run_needs_is_its_checkpoints_and_its_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.check_disk(10**3, 10**6)
    with pytest.raises(DeepenError, match=r"need 3600001.00 GB"):
        folder.check_disk(10**14, 10**9)
