"""Axes: where ticks go and how far along an axis a number lies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST = 1e-100
"""Width of an axis whose ticks can still be told apart."""
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    """Per cent from the left or from the top."""
    label: str
    """The number."""


@dataclass(frozen=True)
class Scale:
    """A linear map from numbers to per cent of a picture's width or height."""

    low: float
    """Number at ``start``."""
    high: float
    """Number at ``end``."""
    start: float
    """Place in per cent."""
    end: float
    """Place in per cent."""

    def __call__(self, value: float) -> float:
        """Return the place of a number in per cent."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """Return round numbers inside the range, about that many."""
        step = round_step(self.high - self.low, wanted)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(step * i, 12) for i in range(first, last + 1)]


def round_step(width: float, wanted: int) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that needs at most that many."""
    power = 10.0 ** math.floor(math.log10(width / wanted))
    return next(step * power for step in _STEPS if step * power >= width / wanted * (1 - 1e-9))


def around(values: Sequence[float], start: float, end: float, margin: float = 0.06) -> Scale:
    """Make a scale that holds all values with some room on both sides."""
    low, high = min(values), max(values)
    room = max((high - low) * margin or abs(high) * margin or 1.0, _LEAST)
    return Scale(low - room, high + room, start, end)
