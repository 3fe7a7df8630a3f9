"""How likely it is that the best of many spans is as good by luck.

If a span does nothing to the loss of a text, each sequence's difference to the base is as likely to
be a gain as a loss. So signs are drawn for the sequences, the same for all spans, whose differences
go together, and every span's t statistic is taken anew; how often the best of all these is as good
as the one at hand is the chance (single-step max-T: Westfall and Young, Resampling-Based Multiple
Testing, 1993). A span that does harm would be a great gain under turned signs and hide everything:
its mean is taken away first, as if it did nothing, which leaves its noise to be reckoned with
(Hansen, A Test for Superior Predictive Ability, 2005).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 9_999
"""Assignments of signs that are drawn, where there are too many to count all."""
_ALL = 13
"""Sequences of which all assignments are counted: 8,192."""
_TOGETHER = 2**22
"""Numbers held at a time."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Luck:
    """The chance of luck of every span."""

    chances: list[float]
    """Span by span: the share of assignments of signs under which the best of all spans is at least
    as good."""
    flips: int
    """Assignments of signs that were counted over, the one at hand among them."""
    exact: bool
    """Whether these are all that there are."""


def luck(differences: Floats, seed: int) -> Luck:
    """Return how likely each span is as good as it is, or better, as the best of all by luck.

    Args:
        differences: Loss with a span repeated minus the base's ``[sequences, spans]``, of at least
            two sequences; a span with one that is not finite is worse than all others.
        seed: Of the signs, where they are drawn.
    """
    finite = np.isfinite(differences).all(0)
    chances = np.ones(differences.shape[1])
    signs, exact = _signs(len(differences), seed)
    if finite.any():
        own = differences[:, finite]
        least = _least(_harmless(own), signs)
        at_hand = _t(own.mean(0), (own**2).sum(0), len(own))
        # What is drawn is not the assignment at hand, which counts as well.
        as_good = (least[:, None] <= at_hand + 1e-9 * np.abs(at_hand)).sum(0) + (not exact)
        chances[finite] = np.minimum(1.0, as_good / (len(signs) + (not exact)))
    return Luck([float(chance) for chance in chances], len(signs) + (not exact), exact)


def _signs(sequences: int, seed: int) -> tuple[Floats, bool]:
    """Return assignments of signs ``[assignments, sequences]``, and whether these are all."""
    if sequences <= _ALL:
        bits = np.arange(2**sequences)[:, None] >> np.arange(sequences) & 1
        return np.where(bits == 0, 1.0, -1.0), True
    drawn = np.random.default_rng(seed).integers(0, 2, (DRAWS, sequences))
    return np.where(drawn == 0, 1.0, -1.0), False


def _harmless(differences: Floats) -> Floats:
    """Take away the mean of spans that do harm; what is left varies as much as it did."""
    count, mean = len(differences), differences.mean(0)
    without = (differences - mean) * math.sqrt(count / (count - 1))
    return np.where(mean > 0, without, differences)


def _least(differences: Floats, signs: Floats) -> Floats:
    """Return the least t statistic of all spans for each assignment of signs."""
    squares, count = (differences**2).sum(0), len(differences)
    rows = max(1, _TOGETHER // differences.shape[1])
    parts = [
        _t(signs[start : start + rows] @ differences / count, squares, count).min(1)
        for start in range(0, len(signs), rows)
    ]
    return np.concatenate(parts)


def _t(mean: Floats, squares: Floats, count: int) -> Floats:
    """Return Student's t of means whose sums of squares are known; 0 of what is all zero."""
    variance = np.maximum(squares - count * mean**2, 0) / (count - 1)
    error = np.sqrt(np.maximum(variance / count, 1e-30))
    return mean / error
