"""Packed sequences together with their states."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from deepen.training.trunk.states import States

STATE = "trunk"
"""Name of the state beside a sequence's tokens and labels."""


class WithStates(Dataset[dict[str, Tensor]]):
    """A source's sequences, or those of several one behind the other, with their states."""

    def __init__(self, data: Any, states: Sequence[States]) -> None:  # noqa: ANN401 (either kind)
        """Put both together.

        Args:
            data: Packed sequences, or several sources of them.
            states: Of each source.
        """
        self._data, self._states = data, states
        self._begins = [0, *accumulate(map(len, parts(data)))]

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sequence and its state."""
        states, own = self.place(index)
        return {**self._data[index], STATE: states.read(own)}

    def place(self, index: int) -> tuple[States, int]:
        """Return the file that a sequence's state belongs into, and its index there."""
        source = bisect_right(self._begins, index) - 1
        return self._states[source], index - self._begins[source]

    def missing(self, indices: Iterable[int]) -> list[int]:
        """List those among some sequences whose states are not there, each once."""
        placed = {index: self.place(index) for index in indices}
        return [index for index, (states, own) in placed.items() if not states.holds(own)]

    @property
    def state_bytes(self) -> int:
        """Size of a state."""
        return self._states[0].state_bytes

    def delete(self) -> None:
        """Delete the files of the states."""
        for states in self._states:
            states.delete()


def parts(data: Any) -> list[Any]:  # noqa: ANN401
    """List the sources of packed sequences."""
    return [*data.datasets] if isinstance(data, ConcatDataset) else [data]
