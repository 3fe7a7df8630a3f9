"""The search for learning rates."""

import math
import random

import pytest

from deepen.comparison.rates import best_rate, beyond


def grid(seed):
    """Draw rates with losses, some of which are equal, and some diverged."""
    draw = random.Random(seed)
    rates = {10 ** draw.uniform(-6, -1) for _ in range(draw.randint(1, 6))}
    return {rate: draw.choice([None, *map(float, range(5))]) for rate in rates}


GRIDS = [grid(seed) for seed in range(200)]


@pytest.mark.parametrize("losses", GRIDS)
def test_the_best_rate_has_the_lowest_loss(losses):
    best, found = best_rate(losses), [loss for loss in losses.values() if loss is not None]
    assert (best is None) == (not found)
    assert best is None or losses[best] == min(found)


@pytest.mark.parametrize("losses", GRIDS)
def test_a_further_rate_lies_outside_and_is_asked_for_where_the_best_one_is_at_an_end(losses):
    best, further = best_rate(losses), beyond(losses)
    low, high = min(losses), max(losses)
    if best is None:
        assert further < low
    elif low < best < high:
        assert further is None
    elif best == high:
        assert further > high
    else:
        assert further < low


def test_the_step_is_that_of_the_grid():
    assert math.isclose(beyond({1e-3: 3.0, 2e-3: 2.9}), 4e-3)
    assert math.isclose(beyond({1e-3: 2.9, 3e-3: 3.0}), 1e-3 / 3)
    assert math.isclose(beyond({1e-3: 2.9}), 2e-3)
    assert beyond({1e-3: 3.0, 2e-3: 2.9, 4e-3: None}) is None


def test_a_bowl_is_found_whatever_the_grid_begins_with():
    for start in (1e-5, 1e-2):
        losses = {start: math.log(start / 3e-4) ** 2}
        while (rate := beyond(losses)) is not None:
            losses[rate] = math.log(rate / 3e-4) ** 2
        assert 1.5e-4 <= best_rate(losses) <= 6e-4
