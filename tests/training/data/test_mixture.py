"""Mixtures: shares hold after any number of draws, and what is mixed in changes no other order."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from deepen.training.data.mixture import Mixture, turns
from deepen.training.data.order import Order, steps_of
from deepen.training.engine.schedule import Schedule
from deepen.training.recipe import TrainingConfig

SMALL = [
    weights
    for sources, largest in ((2, 40), (3, 12), (4, 7), (5, 4))
    for weights in itertools.product(range(1, largest + 1), repeat=sources)
]
"""Weights of sources: the mixtures of 2 to 5 sources are far more than a sample."""


def shares_of(weights: tuple[int, ...]) -> list[Fraction]:
    return [Fraction(weight, sum(weights)) for weight in weights]


def furthest(weights: tuple[int, ...]) -> Fraction:
    """Return how far any count ever is from its share, over a whole period and a bit more."""
    total = sum(weights)
    drawn = turns(shares_of(weights), total + 3)
    counts = (drawn[:, None] == np.arange(len(weights))).cumsum(0)
    exact = np.arange(1, total + 4)[:, None] * np.array(weights)
    return Fraction(int(abs(counts * total - exact).max()), total)


def test_every_count_stays_within_tijdemans_bound_of_its_share() -> None:
    for weights in SMALL:
        assert furthest(weights) <= 1 - Fraction(1, 2 * len(weights) - 2), weights


def test_of_two_sources_each_has_its_share_rounded() -> None:
    assert max(furthest((1000 - share, share)) for share in range(1, 1000, 7)) == Fraction(1, 2)


def test_many_sources_and_uneven_shares_keep_the_bound() -> None:
    random = np.random.default_rng(0)
    for sources in range(2, 12):
        weights = tuple(random.integers(1, 10 ** int(random.integers(1, 4)), sources).tolist())
        assert furthest(weights) <= 1 - Fraction(1, 2 * sources - 2), weights


def test_a_shorter_run_draws_the_beginning_of_a_longer_one() -> None:
    for weights in SMALL[::7]:
        shares, longest = shares_of(weights), 2 * sum(weights) + 1
        longer = turns(shares, longest).tolist()
        for total in (0, 1, sum(weights) - 1, sum(weights), longest - 1):
            assert turns(shares, total).tolist() == longer[:total]


def test_shares_of_many_digits_are_exact() -> None:
    share = Fraction("0.3333333333333333")
    drawn = turns([1 - share, share], 30_000)
    assert (drawn == 1).sum() == 10_000


@pytest.mark.parametrize("main", [1, 7, 30])
@pytest.mark.parametrize("old", [1, 11])
@pytest.mark.parametrize("percent", [1, 30, 99])
def test_the_main_data_keep_their_order_whatever_is_mixed_in(
    main: int, old: int, percent: int
) -> None:
    total, seed = 150, 3
    share = Fraction(percent, 100)
    mixture = Mixture((main, old), (1 - share, share))
    mixed = Order(mixture, total, seed).indices()
    of_main, of_old = mixed[mixed < main], mixed[mixed >= main] - main
    assert of_main.tolist() == list(Order(main, len(of_main), seed))
    assert of_old.max(initial=0) < old
    for begin in range(0, len(of_old) - old + 1, old):  # whole passes
        assert np.sort(of_old[begin : begin + old]).tolist() == list(range(old))


def test_a_source_has_an_order_of_its_own() -> None:
    half = Mixture((40, 40), (Fraction(1, 2), Fraction(1, 2)))
    mixed = Order(half, 80, 5).indices()
    assert mixed[mixed < 40].tolist() != (mixed[mixed >= 40] - 40).tolist()


@pytest.mark.parametrize(("epochs", "share"), [(1, "0.1"), (2.5, "0.3"), (1, "0.45")])
def test_epochs_are_passes_over_the_main_data_alone(epochs: float, share: str) -> None:
    mixture = Mixture((60, 7), (1 - Fraction(share), Fraction(share)))
    training = TrainingConfig(epochs=epochs, batch_size=1)
    steps = steps_of(training, 8, mixture, seed=0)
    drawn, _ = Schedule(training, steps, 8, mixture, 0).drawn
    assert 60 * epochs - 1 <= drawn.sequences <= 60 * epochs


def test_what_each_source_gives_adds_up() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 50)
    mixture = Mixture((30, 15, 5), (Fraction(1, 2), Fraction(3, 8), Fraction(1, 8)))
    schedule = Schedule(TrainingConfig(batch_size=4), 20, lengths, mixture, 1)
    assert [source.sequences for source in schedule.drawn] == [40, 30, 10]
    assert sum(source.tokens for source in schedule.drawn) == schedule.tokens[-1]
    order = schedule.order.indices()
    assert schedule.drawn[2].tokens == lengths[order[order >= 45]].sum()
