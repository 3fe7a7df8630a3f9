"""The chance of luck: against plain counting, and where nothing helps, as often as it says."""

from itertools import product

import numpy as np
import pytest

from deepen.comparison.spans.chance import luck


def t(values):
    return values.mean() / (values.std(ddof=1) / len(values) ** 0.5)


def noise(seed, sequences=8, spans=12):
    """Return differences that go together, as those of spans do, and differ in size."""
    random = np.random.default_rng(seed)
    common, own = random.normal(size=(sequences, 1)), random.normal(size=(sequences, spans))
    return (0.6 * common + 0.8 * own) * random.uniform(0.01, 0.3, spans)


def test_few_sequences_are_counted_exactly():
    differences = noise(1, 6, 4) - 0.02
    found = luck(differences, 0)
    assert (found.flips, found.exact) == (64, True)
    recentred = differences - differences.mean(0)
    recentred = np.where(differences.mean(0) > 0, recentred * (6 / 5) ** 0.5, differences)
    signs = [np.array(one)[:, None] for one in product((1, -1), repeat=6)]
    least = np.array([min(t(column) for column in (s * recentred).T) for s in signs])
    expected = [(least <= t(column) + 1e-9).mean() for column in differences.T]
    assert found.chances == pytest.approx(expected)


def test_one_span_alone_is_the_sign_flip_test():
    gains = -np.arange(1.0, 9.0)[:, None]
    assert luck(gains, 0).chances == [1 / 256]
    assert luck(-gains, 0).chances == [1.0]


def test_many_sequences_are_drawn_and_the_same_seed_draws_the_same():
    differences = noise(3, 16) - 0.05
    one, again, other = (luck(differences, seed) for seed in (5, 5, 6))
    assert (one.flips, one.exact) == (10_000, False)
    assert one == again
    assert one.chances != other.chances
    assert one.chances == pytest.approx(other.chances, abs=0.03)
    assert min(luck(differences - 1, 0).chances) == 1e-4, "never nought: it is one of the draws"


@pytest.mark.parametrize("harmful", [0.0, 0.9])
def test_where_no_span_helps_one_seems_to_no_more_often_than_told(harmful):
    lucky = 0
    for seed in range(150):
        differences = noise(seed, 8, 24)
        random = np.random.default_rng(1000 + seed)
        differences[:, random.random(24) < harmful] += random.uniform(0.2, 3)
        lucky += min(luck(differences, seed).chances) <= 0.05
    assert lucky <= 15, "5 % of 150 are 7.5, with a deviation of 2.7"
    assert lucky >= (2 if not harmful else 0)


def test_spans_that_do_harm_do_not_hide_one_that_helps():
    differences = noise(7, 12, 30)
    differences[:, 1:] += 2.0
    differences[:, 0] = -0.02 - 0.01 * np.random.default_rng(0).random(12)
    assert luck(differences, 0).chances[0] < 0.01


def test_more_spans_make_luck_more_likely():
    differences = noise(11, 10, 40)
    differences[:, 0] = noise(12, 10, 1)[:, 0] - 0.8 * noise(12, 10, 1).std()
    few, many = luck(differences[:, :2], 0).chances[0], luck(differences, 0).chances[0]
    assert few < many


def test_what_is_no_number_is_worse_than_all_others():
    differences = noise(2, 8, 3) - 0.3
    differences[2, 1] = np.inf
    broken = luck(differences, 0).chances
    assert broken[1] == 1.0
    assert broken[::2] == luck(differences[:, ::2], 0).chances
    assert luck(np.full((8, 2), np.nan), 0).chances == [1.0, 1.0]
    assert luck(np.zeros((8, 2)), 0).chances == [1.0, 1.0]
