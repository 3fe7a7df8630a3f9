"""The order of the data: complete, fixed by the seed, and a prefix of any longer one."""

import numpy as np
import pytest

from deepen.training.data.order import Order, steps_of, tokens_after
from deepen.training.engine.schedule import Schedule
from deepen.training.recipe import TrainingConfig


def test_every_pass_sees_every_sequence_once_in_an_order_of_its_own() -> None:
    passes = np.array(list(Order(items=10, total=30, seed=1))).reshape(3, 10)
    assert (np.sort(passes) == np.arange(10)).all()
    assert len({tuple(row) for row in passes}) == 3


def test_a_shorter_budget_sees_the_beginning_of_a_longer_one() -> None:
    assert list(Order(10, 25, 1)) == list(Order(10, 40, 1))[:25]
    assert list(Order(10, 25, 1)) != list(Order(10, 25, 2))


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(0)
    before = list(Order(10, 10, 1)), np.random.random()
    np.random.seed(0)
    assert (list(Order(10, 10, 1)), np.random.random()) == before


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"epochs": 1}, 12),  # as the paper's 812 steps of 64 are 52,002 rows without the last 34
        ({"epochs": 2.5}, 31),
        ({"epochs": 0.01}, 1),
        ({"max_tokens": 640}, 16),
        ({"max_tokens": 679}, 16),
        ({"max_tokens": 1}, 1),
    ],
)
def test_budgets(budget: dict[str, float], steps: int) -> None:
    training = TrainingConfig.model_validate({"batch_size": 4, **budget})
    assert steps_of(training, 10, items=50, seed=0) == steps
    assert steps_of(training, np.full(50, 10), items=50, seed=0) == steps


def test_a_token_budget_over_unequal_rows_is_the_most_that_fits() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 50)
    training = TrainingConfig(batch_size=4, max_tokens=3000)
    steps = steps_of(training, lengths, items=50, seed=0)
    longer = Schedule(training, steps + 1, lengths, 50, seed=0)
    assert longer.tokens[steps] <= 3000 < longer.tokens[steps + 1]


def test_tokens_are_counted_step_by_step() -> None:
    lengths = np.arange(1, 11)
    order = Order(10, 8, 3)
    drawn = [int(lengths[i]) for i in order]
    assert list(tokens_after(order, lengths, 4)) == [0, sum(drawn[:4]), sum(drawn)]
    assert list(tokens_after(order, 5, 4)) == [0, 20, 40]


def test_data_without_a_mixture_are_shuffled_pass_by_pass() -> None:
    passes = [np.random.default_rng([7, epoch]).permutation(10) for epoch in range(3)]
    assert list(Order(10, 25, 7)) == np.concatenate(passes)[:25].tolist()
