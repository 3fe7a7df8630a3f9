"""Exact assignment: against all permutations, planted ones, and where nothing is determined."""

import itertools

import pytest
import torch

from deepen.common.errors import DeepenError
from deepen.transport.assignment import assign, best_share, choose_rows


def _cost(seed: int, n: int) -> torch.Tensor:
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(3))
def test_no_permutation_is_cheaper(n, seed):
    cost = _cost(seed, n)
    columns = torch.arange(n)
    source = assign(cost)
    cheapest = min(
        float(cost[list(rows), columns].sum()) for rows in itertools.permutations(range(n))
    )
    assert sorted(source.tolist()) == list(range(n))
    assert float(cost[source, columns].sum()) == pytest.approx(cheapest)


def test_it_says_for_every_column_which_row_goes_there():
    where = torch.tensor([2, 0, 1])  # not its own inverse
    cost = torch.ones(3, 3)
    cost[where, torch.arange(3)] = 0
    assert torch.equal(assign(cost), where)
    assert assign(cost).dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_planted_permutation_is_found_in_every_precision(dtype):
    n = 61
    where = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    cost = 1 + _cost(2, n)
    cost[where, torch.arange(n)] = 0.5
    assert torch.equal(assign(cost.to(dtype)), where)


def test_negative_costs_and_offsets_change_nothing():
    cost = _cost(3, 37)
    assert torch.equal(assign(cost - 5), assign(cost))


@pytest.mark.parametrize("value", [0.0, -1.0, 3.5])
@pytest.mark.parametrize("n", [1, 4, 37])
def test_a_constant_cost_gives_the_identity(value, n):
    assert torch.equal(assign(torch.full((n, n), value)), torch.arange(n))


def test_the_same_cost_gives_the_same_matching_and_is_left_alone():
    cost = (8 * _cost(4, 53)).round()  # many ties
    before = cost.clone()
    assert torch.equal(assign(cost), assign(cost.clone()))
    assert torch.equal(cost, before)


def test_nothing_to_assign():
    assert assign(torch.empty(0, 0)).shape == (0,)


def test_a_cost_that_is_not_square_is_refused():
    with pytest.raises(DeepenError, match=r"as many rows as columns, not \[3, 4\]"):
        assign(torch.zeros(3, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_cost_that_is_not_finite_is_refused(value):
    cost = _cost(5, 6)
    cost[2, 3] = value
    with pytest.raises(DeepenError, match="infinite or not a number"):
        assign(cost)


@pytest.mark.parametrize(("share", "kept"), [(0, []), (0.4, [1, 3]), (0.5, [1, 3]), (1, range(5))])
def test_the_best_share_has_the_largest_similarities(share, kept):
    chosen = best_share(torch.tensor([0.2, 0.9, -1.0, 0.5, 0.2]), share)
    assert chosen.nonzero().flatten().tolist() == list(kept)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_rows_are_chosen_along_the_first_axis(shape):
    one, other = torch.ones(shape), torch.zeros(shape, dtype=torch.float64)
    chosen = torch.tensor([True, False, False, True])
    found = choose_rows(chosen, one, other)
    assert found.dtype == one.dtype
    for row, mine in zip(found, chosen, strict=True):
        assert (row == float(mine)).all()
