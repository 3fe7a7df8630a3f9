"""A full disk is told, and nothing else is taken for one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deepen.common.errors import DeepenError
from deepen.training.run_folder import RunFolder, damage, last_checkpoint, mark_whole


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


@pytest.fixture
def whole(tmp_path: Path) -> RunFolder:
    """A run's folder with two checkpoints that are marked as whole."""
    for step in (2, 4):
        checkpoint = tmp_path / "checkpoints" / f"checkpoint-{step}"
        (checkpoint / "optimizer_0").mkdir(parents=True)
        for name in (*FILES, "optimizer_0/__0_0.distcp"):
            (checkpoint / name).write_bytes(f"{name} after {step} steps".encode())
        mark_whole(checkpoint)
    return RunFolder(tmp_path)


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [emptied, truncated, flipped, Path.unlink])
@pytest.mark.parametrize("name", [*FILES, "optimizer_0/__0_0.distcp", "complete.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_whole_one_before_it(
    whole: RunFolder, harm: Callable[[Path], None], name: str
) -> None:
    newest, before = (whole.checkpoints / f"checkpoint-{step}" for step in (4, 2))
    assert damage(newest) is None
    harm(newest / name)
    told: list[str] = []
    whole.drop_broken(told.append)
    assert last_checkpoint(whole.checkpoints) == before
    assert not newest.exists(), "what is written there next would stand beside damaged files"
    if (harm, name) == (Path.unlink, "complete.json"):
        assert told == []  # as a kill leaves it
    else:
        assert len(told) == 1
        assert told[0].startswith("Passing over checkpoint-4, which is damaged: ")
        assert name in told[0]


def test_without_a_whole_checkpoint_nothing_is_deleted_and_both_are_named(
    whole: RunFolder,
) -> None:
    flipped(whole.checkpoints / "checkpoint-4" / "optimizer.pt")
    (whole.checkpoints / "checkpoint-2" / "scheduler.pt").unlink()
    said = r"\(checkpoint-4: optimizer.pt holds other .*; checkpoint-2: scheduler.pt is missing\)"
    with pytest.raises(DeepenError, match=said):
        whole.drop_broken(print)
    assert (whole.checkpoints / "checkpoint-4" / "model.safetensors").is_file()
    assert (whole.checkpoints / "checkpoint-2" / "model.safetensors").is_file()


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_word_unless_something_is_gone(
    whole: RunFolder,
) -> None:
    for step in (2, 4):
        checkpoint = whole.checkpoints / f"checkpoint-{step}"
        (checkpoint / "complete.json").rename(checkpoint / "complete")
        emptied(checkpoint / "complete")
    told: list[str] = []
    whole.drop_broken(told.append)
    assert len(told) == 1
    assert "Taking checkpoint-4 as it is" in told[0]
    emptied(whole.checkpoints / "checkpoint-4" / "optimizer.pt")
    whole.drop_broken(told.append)
    assert "optimizer.pt is empty" in told[1]
    assert last_checkpoint(whole.checkpoints) == whole.checkpoints / "checkpoint-2"


def test_what_is_no_checkpoint_is_let_be(whole: RunFolder) -> None:
    (whole.checkpoints / "checkpoint-last").mkdir()
    emptied(whole.checkpoints / "checkpoint-last" / "complete")
    assert last_checkpoint(whole.checkpoints) == whole.checkpoints / "checkpoint-4"


def test_the_mark_comes_after_every_byte_and_name_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    (checkpoint / "inner").mkdir(parents=True)
    for name in ("model.safetensors", "inner/optimizer.bin"):
        (checkpoint / name).write_bytes(b"bytes")
    synced, real = list[str](), os.fsync

    def fsync(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        assert (checkpoint / "complete.json").exists() == (len(synced) > 5)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    mark_whole(checkpoint)
    wanted = {"model.safetensors", "inner/optimizer.bin", "inner", "."}
    assert {str(checkpoint / name) for name in wanted} <= {*synced[:4]}
    assert str(checkpoint.parent) in synced


def test_what_a_run_needs_is_its_checkpoints_and_its_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.check_disk(10**3, 10**6, 3)
    with pytest.raises(DeepenError, match=r"need 3600001.00 GB"):
        folder.check_disk(10**14, 10**9, 3)
