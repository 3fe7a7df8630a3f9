"""What a scan concludes from losses that are planted."""

import math

import numpy as np
import pytest

from deepen.comparison.spans.grid import Span
from deepen.comparison.spans.verdict import conclude
from deepen.comparison.statistics import interval

BASE = [3.0 + 0.1 * i for i in range(24)]
SPANS = [Span(first, last) for last in range(8) for first in range(last + 1)]


def losses(gain=None, confirmed=True, noise=0.02):
    """Return losses of spans that all do harm, but for one."""
    random = np.random.default_rng(3)
    found = {}
    for span in SPANS:
        change = np.full(len(BASE), 0.2) + noise * random.normal(size=len(BASE))
        if span == Span(2, 3) and gain is not None:
            change -= 0.2 + gain
            change[1::2] += 0 if confirmed else gain
        found[span] = [float(b + c) for b, c in zip(BASE, change, strict=True)]
    return found


def test_a_span_that_helps_is_found_and_confirmed():
    found = conclude(BASE, losses(0.1), 1, 0)
    assert (found.verdict, found.choice.first, found.choice.last) == ("helps", 2, 3)
    own = [ours - b for ours, b in zip(losses(0.1)[Span(2, 3)], BASE, strict=True)]
    assert found.choice.choosing == pytest.approx(np.mean(own[::2]))
    held = (found.choice.confirming, found.choice.low, found.choice.high)
    assert held == pytest.approx(interval(own[1::2]))
    assert found.choice.chance < 0.001
    assert found.sentence.startswith("Span 2-3, repeated once, lowers the loss on this text")
    assert f"{held[0]:+.4f}" in found.sentence
    assert "a best of 36 is that good by luck" in found.sentence
    assert "repeated 3 times" in conclude(BASE, losses(0.1), 3, 0).sentence


def test_what_only_the_choosing_half_has_is_not_shown():
    found = conclude(BASE, losses(0.1, confirmed=False), 1, 0)
    assert found.verdict == "unproven"
    assert found.choice.chance < 0.001
    assert "No span is shown to help" in found.sentence


def test_where_every_span_does_harm_none_helps():
    found = conclude(BASE, losses(), 1, 0)
    assert found.verdict == "none"
    assert found.choice.choosing == min(span.choosing for span in found.spans)
    assert found.sentence.startswith("No span helps on this text")


def test_a_large_gain_by_luck_does_not_outdo_a_sure_one():
    known, random = losses(0.05), np.random.default_rng(5)
    wild = -0.1 + 2.0 * random.permutation(np.repeat([-0.5, 0.5], 12))
    known[Span(0, 7)] = [float(b + c) for b, c in zip(BASE, wild, strict=True)]
    assert conclude(BASE, known, 1, 0).choice.last == 3


def test_spans_that_compute_no_numbers_are_not_chosen():
    known = losses()
    known[Span(0, 0)] = [math.nan] * len(BASE)
    known[Span(1, 1)] = [math.inf] * len(BASE)
    found = conclude(BASE, known, 1, 0)
    assert found.verdict == "none"
    assert math.isfinite(found.choice.confirming)
    broken = conclude(BASE, {Span(0, 0): [math.nan] * len(BASE)}, 1, 0)
    assert broken.verdict == "none"
    assert "nan" in broken.sentence
