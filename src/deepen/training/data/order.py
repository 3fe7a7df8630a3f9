"""Which sequences make up which step: fixed by the seed, the same for every model."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from deepen.training.recipe import TrainingConfig

Lengths = NDArray[np.int64] | int
"""Tokens of each sequence, or of all alike."""


class Order(Sampler[int]):
    """A shuffled pass over the data, then another, until the budget is used up."""

    def __init__(self, items: int, total: int, seed: int) -> None:
        """Fix the order.

        Args:
            items: Number of sequences in the data.
            total: Number of sequences to draw.
            seed: Determines the order together with ``items`` alone.
        """
        self._items, self._total, self._seed = items, total, seed

    def __len__(self) -> int:
        """Return the number of sequences drawn."""
        return self._total

    def __iter__(self) -> Iterator[int]:
        """Iterate over indices into the data."""
        return iter(self.indices().tolist())

    def indices(self) -> NDArray[np.int64]:
        """Return all indices into the data, in order."""
        epochs = -(-self._total // self._items)
        return np.concatenate([self._epoch(epoch) for epoch in range(epochs)])[: self._total]

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Shuffle one pass over the data."""
        return np.random.default_rng([self._seed, epoch]).permutation(self._items)


def steps_of(training: TrainingConfig, lengths: Lengths, items: int, seed: int) -> int:
    """Turn the recipe's budget into optimizer steps.

    Args:
        training: The recipe's budget and batch size.
        lengths: Tokens of each sequence, or of all alike.
        items: Number of sequences in the data.
        seed: Of the order.

    Returns:
        The steps that fit wholly into the budget, at least one.
    """
    if training.max_steps:
        return training.max_steps
    if training.epochs:
        return max(1, int(items * training.epochs) // training.batch_size)
    assert training.max_tokens is not None
    if isinstance(lengths, int):
        return max(1, training.max_tokens // (training.batch_size * lengths))
    longest_run = training.max_tokens // max(1, int(lengths.min())) + training.batch_size
    drawn = Order(items, longest_run, seed).indices()
    return max(
        1, int((lengths[drawn].cumsum() <= training.max_tokens).sum()) // training.batch_size
    )


def tokens_after(order: Order, lengths: Lengths, batch_size: int) -> Sequence[int]:
    """Return the tokens seen after 0, 1, 2, … steps, over all processes."""
    drawn = order.indices()
    each = np.full(len(drawn), lengths) if isinstance(lengths, int) else lengths[drawn]
    of_step = each.reshape(-1, batch_size).sum(axis=1)
    return list(itertools.accumulate(of_step.tolist(), initial=0))
