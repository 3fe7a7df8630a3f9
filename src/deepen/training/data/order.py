"""Which sequences make up which step: fixed by the seed, the same for every model."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from deepen.common.errors import DeepenError
from deepen.training.data.mixture import Mixture, turns
from deepen.training.recipe import TrainingConfig

Lengths = NDArray[np.int64] | int
"""Tokens of each sequence, or of all alike."""
MOST_SEQUENCES = 10**8
"""That a run may draw: their order takes gigabytes of memory."""


class Order(Sampler[int]):
    """A shuffled pass over each source of the data, then another, until the budget is used up."""

    def __init__(self, items: int | Mixture, total: int, seed: int) -> None:
        """Fix the order.

        Args:
            items: Number of sequences in the data, or the sources that lie there one behind the
                other.
            total: Number of sequences to draw.
            seed: Determines the order together with ``items`` alone, and that inside a source
                whatever is mixed with it.

        Raises:
            DeepenError: They are more than a run may draw.
        """
        if total > MOST_SEQUENCES:
            raise DeepenError(
                f"The budget comes to {total:,} sequences, more than the {MOST_SEQUENCES:,} that a "
                f"run may draw; lower training.max_steps, epochs, max_tokens or batch_size."
            )
        self.mixture = items if isinstance(items, Mixture) else Mixture.alone(items)
        self._seed = seed
        self.sources = turns(self.mixture.shares, total)
        """Which source each sequence is from, in order, [total]."""
        self._indices = np.empty(total, np.int64)
        for source, offset in enumerate(self.mixture.offsets[:-1]):
            here = self.sources == source
            self._indices[here] = offset + self._passes(source, int(here.sum()))

    def __len__(self) -> int:
        """Return the number of sequences drawn."""
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        """Iterate over indices into the data."""
        return iter(self._indices.tolist())

    def indices(self) -> NDArray[np.int64]:
        """Return all indices into the data, in order, [total]."""
        return self._indices

    def _passes(self, source: int, total: int) -> NDArray[np.int64]:
        """Shuffle pass after pass over a source."""
        items = self.mixture.items[source]
        # The main source's order is what it is without a mixture.
        own = [source] if source else []
        passes = [
            np.random.default_rng([self._seed, epoch, *own]).permutation(items)
            for epoch in range(-(-total // items))
        ]
        return np.concatenate([*passes, np.empty(0, np.int64)])[:total]


def steps_of(training: TrainingConfig, lengths: Lengths, items: int | Mixture, seed: int) -> int:
    """Turn the recipe's budget into optimizer steps.

    Args:
        training: The recipe's budget and batch size.
        lengths: Tokens of each sequence, or of all alike.
        items: As in ``Order``; epochs count passes over the main source.
        seed: Of the order.

    Returns:
        The steps that fit wholly into the budget, at least one.
    """
    if training.max_steps:
        return training.max_steps
    if training.epochs:
        mixture = Order(items, 0, seed).mixture
        main = int(mixture.items[0] * training.epochs)
        return max(1, int(main / mixture.shares[0]) // training.batch_size)
    assert training.max_tokens is not None
    if isinstance(lengths, int):
        return max(1, training.max_tokens // (training.batch_size * lengths))
    longest_run = training.max_tokens // max(1, int(lengths.min())) + training.batch_size
    drawn = Order(items, longest_run, seed).indices()
    return max(
        1, int((lengths[drawn].cumsum() <= training.max_tokens).sum()) // training.batch_size
    )


def tokens_of(order: Order, lengths: Lengths) -> NDArray[np.int64]:
    """Return the tokens of each sequence drawn, in order, [total]."""
    if isinstance(lengths, int):
        return np.full(len(order), lengths)
    tokens: NDArray[np.int64] = lengths[order.indices()]
    return tokens


def tokens_after(order: Order, lengths: Lengths, batch_size: int) -> Sequence[int]:
    """Return the tokens seen after 0, 1, 2, … steps, over all processes."""
    of_step = tokens_of(order, lengths).reshape(-1, batch_size).sum(axis=1)
    return list(itertools.accumulate(of_step.tolist(), initial=0))
