"""Which sequences and how many tokens each step has."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepen.training.data.mixture import Mixture
from deepen.training.data.order import Lengths, Order, tokens_after, tokens_of
from deepen.training.recipe import TrainingConfig


class Drawn(NamedTuple):
    """What a run sees of a source."""

    sequences: int
    """Sequences, each as often as it is seen."""
    tokens: int
    """Their tokens."""


class Schedule:
    """The steps of a run, known before it begins."""

    def __init__(
        self,
        training: TrainingConfig,
        steps: int,
        lengths: Lengths,
        items: int | Mixture,
        seed: int,
    ) -> None:
        """Fix the order of the data.

        Args:
            training: The recipe's batch size.
            steps: Number of optimizer steps.
            lengths: Tokens of each sequence, or of all alike.
            items: Number of sequences in the data, or the sources of a mixture.
            seed: Of the order.
        """
        self._batch_size, self._lengths = training.batch_size, lengths
        self.order = Order(items, steps * training.batch_size, seed)
        self.tokens: Sequence[int] = tokens_after(self.order, lengths, training.batch_size)

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.tokens) - 1

    @property
    def distinct(self) -> list[int]:
        """Indices of the sequences that the run sees, each once."""
        return [int(index) for index in np.unique(self.order.indices())]

    @property
    def drawn(self) -> list[Drawn]:
        """What the run sees of each source, the main one first."""
        return self.drawn_until(self.steps)

    def drawn_until(self, step: int) -> list[Drawn]:
        """Return what the run has seen of each source after a step."""
        count = step * self._batch_size
        sources = self.order.sources[:count]
        tokens = tokens_of(self.order, self._lengths)[:count]
        return [
            Drawn(int(here.sum()), int(tokens[here].sum()))
            for here in (sources == source for source in range(len(self.order.mixture.items)))
        ]

    def batch(self, step: int) -> list[int]:
        """Return the indices of a step's sequences; steps count from 1."""
        drawn = self.order.indices()[(step - 1) * self._batch_size : step * self._batch_size]
        return [int(index) for index in drawn]
