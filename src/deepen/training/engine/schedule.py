"""Which sequences and how many tokens each step has."""

from collections.abc import Sequence

from deepen.training.data.order import Lengths, Order, tokens_after
from deepen.training.recipe import TrainingConfig


class Schedule:
    """The steps of a run, known before it begins."""

    def __init__(
        self, training: TrainingConfig, steps: int, lengths: Lengths, items: int, seed: int
    ) -> None:
        """Fix the order of the data.

        Args:
            training: The recipe's batch size.
            steps: Number of optimizer steps.
            lengths: Tokens of each sequence, or of all alike.
            items: Number of sequences in the data.
            seed: Of the order.
        """
        self._batch_size = training.batch_size
        self.order = Order(items, steps * training.batch_size, seed)
        self.tokens: Sequence[int] = tokens_after(self.order, lengths, training.batch_size)

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.tokens) - 1

    def batch(self, step: int) -> list[int]:
        """Return the indices of a step's sequences; steps count from 1."""
        drawn = self.order.indices()[(step - 1) * self._batch_size : step * self._batch_size]
        return [int(index) for index in drawn]
