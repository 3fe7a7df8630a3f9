"""Costs: distances against loops, and units that do not depend on the weights' scale."""

import pytest
import torch

import oracles
from deepen.transport import cost


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (3, 7, 5), (31, 29, 48), (60, 60, 2)])
def test_euclidean_distances_equal_loops(n, m, d):
    a, b = _normal(1, n, d), _normal(2, m, d)
    expected = torch.from_numpy(oracles.loop_distances(a.numpy(), b.numpy()))
    actual = cost.euclidean(a, b)
    assert actual.shape == (n, m)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


def test_euclidean_is_not_squared():
    assert cost.euclidean(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])).item() == 5.0


def test_the_spread_becomes_one():
    scaled = cost.in_units_of_spread(cost.euclidean(_normal(1, 40, 16), _normal(2, 33, 16)))
    assert scaled.std(correction=0).item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("factor", [1e-4, 0.02, 300.0])
def test_the_scale_of_the_weights_does_not_matter(factor):
    a, b = _normal(1, 40, 16), _normal(2, 33, 16)
    plain = cost.in_units_of_spread(cost.euclidean(a, b))
    scaled = cost.in_units_of_spread(cost.euclidean(factor * a, factor * b))
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-4)


def test_units_of_spread_work_in_place():
    distances = cost.euclidean(_normal(1, 9, 4), _normal(2, 9, 4))
    assert cost.in_units_of_spread(distances).data_ptr() == distances.data_ptr()


def test_a_constant_cost_stays_finite():
    constant = torch.full((5, 3), 2.0)
    assert torch.equal(cost.in_units_of_spread(constant.clone()), constant)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1.0, 300.0, 1e18, 1e30])
def test_a_tensor_in_range_keeps_every_digit(factor):
    plain = factor * _normal(1, 40, 16)
    moved = cost.in_range(plain)
    assert 0.5 <= moved.abs().max() <= 1
    assert torch.equal(moved.frexp().mantissa, plain.frexp().mantissa)


def test_nothing_is_in_range():
    assert not cost.in_range(torch.zeros(2, 3)).any()
    assert cost.in_range(torch.empty(0, 3)).shape == (0, 3)
