"""States on the disk: whole or not there, whoever writes and whatever ends it."""

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepen.training.trunk.states import States

SHAPE = (5, 3)


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> States:
    """Open a file for nine states."""
    return States(folder / "trunk.states", 9, SHAPE, dtype)


def state(index: int) -> Tensor:
    """Make a state."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    states = opened(tmp_path, dtype)
    for index in (8, 0, 3):
        states.write(index, state(index).to(dtype))
    again = opened(tmp_path, dtype)
    assert [index for index in range(9) if again.holds(index)] == [0, 3, 8]
    for index in (0, 3, 8):
        assert torch.equal(again.read(index), state(index).to(dtype))
    with pytest.raises(RuntimeError, match="has no state of sequence 1"):
        again.read(1)


def test_a_state_of_zeros_is_one(tmp_path: Path) -> None:
    opened(tmp_path).write(2, torch.zeros(SHAPE))
    assert opened(tmp_path).holds(2)
    assert not opened(tmp_path).holds(1)


@pytest.mark.parametrize("place", [0, 1, 30, 59])
def test_a_damaged_state_is_not_there(tmp_path: Path, place: int) -> None:
    opened(tmp_path).write(4, state(4))
    file = tmp_path / "trunk.states"
    contents = bytearray(file.read_bytes())
    contents[4096 + 4 * 60 + place] ^= 1
    file.write_bytes(contents)
    assert not opened(tmp_path).holds(4)


def test_a_state_without_its_mark_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark comes last: a kill before it leaves nothing."""
    written, write = [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda d, c, p: written.append(p) or write(d, c, p))
    opened(tmp_path).write(4, state(4))
    assert written == [4096 + 4 * 60, 4 * 8]


def test_a_copy_for_another_process_opens_the_file_itself(tmp_path: Path) -> None:
    states = opened(tmp_path)
    states.write(1, state(1))
    copy = pickle.loads(pickle.dumps(states))
    del states
    assert torch.equal(copy.read(1), state(1))


def _claim_and_die(folder: Path, ready: object) -> None:
    """Claim a state, say so, and wait to be killed."""
    with opened(folder).claimed(1, wait=True):
        ready.set()  # type: ignore[attr-defined]
        signal.pause()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=_claim_and_die, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    states = opened(tmp_path)
    with states.claimed(1, wait=False) as claimed:
        assert not claimed
    with states.claimed(2, wait=False) as claimed:
        assert claimed
    process.kill()
    with states.claimed(1, wait=True) as claimed:
        assert claimed
    process.join()
