"""Filling: what is missing, once, by however many processes at once."""

import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from deepen.training.trunk.data import WithStates
from deepen.training.trunk.fill import fill
from deepen.training.trunk.states import States

SEQUENCES, SHAPE = 12, (4, 2)
BATCHES = [[3, 0], [7, 11], [0, 5], [2, 1], [9, 9], [10, 3]]


class Rows(list[dict[str, Tensor]]):
    """Sequences whose tokens are not looked at."""


def opened(folder: Path) -> WithStates:
    """Open the file of a source's states."""
    states = States(folder / "trunk.states", SEQUENCES, SHAPE, torch.float32)
    return WithStates(Rows([{} for _ in range(SEQUENCES)]), [states])


def computed(batch: Sequence[int]) -> Tensor:
    """Compute states that tell which they are."""
    return torch.stack([torch.full(SHAPE, float(index)) for index in batch])


def test_each_missing_state_is_computed_once_in_whole_batches(tmp_path: Path) -> None:
    data, asked, shares = opened(tmp_path), [], []

    def compute(batch: Sequence[int]) -> Tensor:
        asked.append(list(batch))
        return computed(batch)

    assert fill(data, BATCHES, compute, lambda stage, share: shares.append(share)) == 9
    assert asked == [*BATCHES[:5], [10, 3]]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    for index in {i for batch in BATCHES for i in batch}:
        assert torch.equal(data[index]["trunk"], torch.full(SHAPE, float(index)))
    assert data.missing([4, 3, 6, 4]) == [4, 6]
    assert fill(opened(tmp_path), BATCHES, compute, lambda stage, share: None) == 0
    assert len(asked) == 6


def _fill_slowly(folder: Path) -> int:
    """Fill, so slowly that two processes meet."""

    def compute(batch: Sequence[int]) -> Tensor:
        time.sleep(0.05)
        return computed(batch)

    batches = [[index, index + 1] for index in range(0, SEQUENCES, 2)] * 2
    return fill(opened(folder), batches, compute, lambda stage, share: None)


def test_processes_share_the_work(tmp_path: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        counts = pool.map(_fill_slowly, [tmp_path, tmp_path], chunksize=1)
    assert sum(counts) == SEQUENCES
    data = opened(tmp_path)
    assert not data.missing(range(SEQUENCES))
    for index in range(SEQUENCES):
        assert torch.equal(data[index]["trunk"], torch.full(SHAPE, float(index)))
