"""Which source each sequence of a mixture comes from: shares that hold after any number of them."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Mixture(NamedTuple):
    """Sources of sequences, the main one first; a single one is a mixture too."""

    items: tuple[int, ...]
    """Number of sequences in each source."""
    shares: tuple[Fraction, ...]
    """Share of each in all sequences drawn; they add up to 1."""

    @classmethod
    def alone(cls, items: int) -> "Mixture":
        """Return the mixture of one source."""
        return cls((items,), (Fraction(1),))

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each source begins when they lie one behind the other, and where the last ends."""
        return np.cumsum([0, *self.items], dtype=np.int64)


def turns(shares: Sequence[Fraction], total: int) -> NDArray[np.int64]:
    """Say which source each draw is from.

    A source's next draw is ready once it is not too early for its share; of those that are ready,
    the one that would first be too late is drawn, the first of the list among equals (Tijdeman, The
    chairman assignment problem, Discrete Mathematics 32, 1980, 323-330). After any number n of
    draws, each of k sources has then been drawn within 1 - 1/(2k - 2) of its share of n, and no
    rule is better for all shares: two sources are never further than half a draw from theirs, which
    is rounding, or the method of the largest remainder.

    Args:
        shares: Of each source; they add up to 1.
        total: Number of draws. What is drawn does not depend on it: a shorter run draws the
            beginning of a longer one.

    Returns:
        Indices of sources, [total].
    """
    if len(shares) == 1:
        return np.zeros(total, np.int64)
    denominator = math.lcm(*(share.denominator for share in shares))
    # Once every count is its share exactly, everything repeats.
    period = _one_by_one(shares, min(total, denominator))
    return np.resize(period, total)


def _one_by_one(shares: Sequence[Fraction], total: int) -> NDArray[np.int64]:
    """Draw in whole numbers: exact, whatever the shares."""
    slack = 2 * len(shares) - 2
    unit = math.lcm(*(share.numerator for share in shares)) * slack  # of time: one draw
    gaps = [int(unit / share) for share in shares]  # between draws of a source
    due = [gap * (slack - 1) // slack for gap in gaps]
    lead = [gap * (slack - 2) // slack for gap in gaps]
    drawn = np.empty(total, np.int64)
    for draw in range(total):
        now = (draw + 1) * unit
        ready = (source for source, time in enumerate(due) if time - lead[source] <= now)
        source = min(ready, key=due.__getitem__)
        drawn[draw] = source
        due[source] += gaps[source]
    return drawn
