"""Sinkhorn: both solvers against slow references, against each other and at the extremes."""

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import oracles
from deepen.transport import sinkhorn

SHAPES = [(1, 1), (2, 3), (37, 37), (53, 29), (16, 61)]


def _cost(seed: int, n: int, m: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, m, generator=generator, dtype=dtype)


def _uniform(size: int) -> np.ndarray:
    return np.full(size, 1 / size)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (7, 7), (11, 5)])
def test_stabilised_equals_loops(n, m):
    cost = _cost(1, n, m)
    solved = sinkhorn.stabilised(cost, 0.1, 1000, tolerance=1e-13)
    np.testing.assert_allclose(
        solved.plan.numpy(), oracles.loop_sinkhorn_log(cost.numpy(), 0.1, 300), rtol=1e-9
    )


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("reg", [1.0, 0.05])
def test_stabilised_equals_pots_log_domain_solver(n, m, reg):
    cost = _cost(2, n, m)
    solved = sinkhorn.stabilised(cost, reg, 10_000, tolerance=1e-11)
    expected = ot.bregman.sinkhorn_log(
        _uniform(n), _uniform(m), cost.numpy(), reg, numItermax=10_000, stopThr=1e-12
    )
    assert solved.converged
    np.testing.assert_allclose(solved.plan.numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_are_exact_and_rows_within_the_tolerance(n, m, dtype):
    solved = sinkhorn.stabilised(_cost(3, n, m, dtype), 0.03, 10_000, tolerance=1e-3)
    rounding = 100 * torch.finfo(dtype).eps
    assert solved.converged
    assert (solved.plan.sum(0) * m - 1).abs().max() < rounding
    assert (solved.plan.sum(1) - 1 / n).abs().sum() <= 1e-3 + rounding
    assert solved.marginal_error == sinkhorn.marginal_error(solved.plan) <= 1e-3 + rounding


def test_a_tighter_tolerance_gives_tighter_rows():
    cost = _cost(4, 37, 37)
    loose, tight = (sinkhorn.stabilised(cost, 0.03, 10_000, tolerance=t) for t in (1e-2, 1e-8))
    assert tight.marginal_error <= 1e-8 < loose.marginal_error
    assert tight.iterations > loose.iterations


@pytest.mark.parametrize("seed", range(3))
def test_small_regularisation_approaches_the_exact_assignment(seed):
    n, reg, tolerance = 23, 2e-3, 1e-4
    cost = _cost(10 + seed, n, n)
    solved = sinkhorn.stabilised(cost, reg, 20_000, tolerance)
    rows, columns = linear_sum_assignment(cost.numpy())
    exact = float(cost[rows, columns].mean())
    entropic = float((solved.plan * cost).sum())
    assert solved.converged
    # The entropy of a plan lies between log n and 2·log n, so the gap is at most reg·log n; rows
    # that are off by the tolerance may save or cost as much, for costs up to 1.
    assert -tolerance <= entropic - exact <= reg * math.log(n) + tolerance
    assert (solved.plan.argmax(1).numpy() == columns).mean() > 0.7


def test_a_planted_permutation_is_found_exactly():
    n = 61
    where = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    cost = 1 + _cost(5, n, n)
    cost[torch.arange(n), where] = 0.0
    solved = sinkhorn.stabilised(cost, 0.02, 1000)
    permutation = torch.eye(n, dtype=cost.dtype)[where]
    torch.testing.assert_close(n * solved.plan, permutation, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (9, 4)])
def test_a_constant_cost_gives_the_uniform_plan(value, n, m):
    solved = sinkhorn.stabilised(torch.full((n, m), value), 0.06, 100)
    assert solved.converged
    torch.testing.assert_close(solved.plan, torch.full((n, m), 1 / (n * m)))


@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 23), (23, 40)])
def test_tiny_regularisation_neither_overflows_nor_gives_nan(offset, n, m):
    cost = offset + _cost(6, n, m, torch.float32)
    solved = sinkhorn.stabilised(cost, 1e-4, 2000)
    assert torch.isfinite(solved.plan).all()
    assert (solved.plan >= 0).all()
    assert (solved.plan.sum(0) * m - 1).abs().max() < 1e-4
    assert math.isfinite(solved.marginal_error)


def test_tiny_regularisation_converges_where_the_assignment_is_clear():
    cost = 10 + 5 * (1 - torch.eye(40))
    solved = sinkhorn.stabilised(cost, 1e-4, 100)
    assert solved.converged
    torch.testing.assert_close(40 * solved.plan, torch.eye(40))


def test_a_constant_added_to_the_cost_does_not_change_the_plan():
    cost = _cost(7, 30, 20)
    plain, shifted = (sinkhorn.stabilised(c, 0.05, 1000).plan for c in (cost, cost + 500))
    torch.testing.assert_close(shifted, plain, rtol=1e-8, atol=0)


def test_stabilised_leaves_the_cost_alone():
    cost = _cost(8, 12, 15)
    before = cost.clone()
    sinkhorn.stabilised(cost, 0.01, 1000)
    assert torch.equal(cost, before)


def test_one_iteration_is_not_called_converged():
    solved = sinkhorn.stabilised(_cost(9, 37, 37), 0.02, 1)
    assert solved.iterations == 1
    assert not solved.converged
    assert solved.marginal_error > 1e-3


@pytest.mark.parametrize("limit", [2, 7, 25])
def test_the_iteration_limit_holds(limit):
    solved = sinkhorn.stabilised(_cost(9, 37, 37), 1e-3, limit)
    assert solved.iterations == limit
    assert not solved.converged


def test_converged_says_what_the_plan_shows():
    cost = _cost(9, 37, 37)
    for limit in range(1, 60):
        solved = sinkhorn.stabilised(cost, 0.02, limit, tolerance=1e-2)
        assert solved.iterations <= limit
        if solved.converged:
            assert solved.marginal_error <= 1e-2
    assert solved.converged
    assert solved.iterations < 60


@pytest.mark.parametrize(("n", "m"), [(37, 37), (16, 25)])
def test_pot_is_the_released_call(n, m):
    cost = _cost(11, n, m, torch.float32)
    a, b = torch.full((n,), 1 / n), torch.full((m,), 1 / m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at float32's noise floor POT may run out of iterations
        expected = ot.sinkhorn(a, b, cost, 0.06, numItermax=10_000)
    assert torch.equal(sinkhorn.pot(cost, 0.06, 10_000).plan, expected)


def test_both_solvers_agree_where_pot_can_work():
    cost = _cost(12, 45, 45)
    tight = sinkhorn.stabilised(cost, 0.06, 10_000, tolerance=1e-9)
    torch.testing.assert_close(tight.plan, sinkhorn.pot(cost, 0.06, 10_000).plan)


def test_pot_tells_that_it_converged():
    solved = sinkhorn.pot(_cost(13, 20, 20), 0.5, 10_000)
    assert solved.converged
    assert solved.iterations < 100
    assert solved.marginal_error < 1e-7


def test_pot_tells_that_its_kernel_vanished():
    solved = sinkhorn.pot(10 + _cost(14, 20, 20, torch.float32), 0.06, 10_000)
    assert not solved.converged
    assert solved.iterations == 1
    assert solved.marginal_error == pytest.approx(1.0, abs=1e-3)


def test_pot_tells_that_it_ran_out_of_iterations():
    solved = sinkhorn.pot(_cost(15, 20, 20), 0.01, 5)
    assert not solved.converged
    assert solved.iterations == 5


def test_marginal_error_is_the_larger_of_rows_and_columns():
    plan = torch.tensor([[0.5, 0.0], [0.25, 0.25]])
    assert sinkhorn.marginal_error(plan) == pytest.approx(0.5)
    assert sinkhorn.marginal_error(plan.T) == pytest.approx(0.5)
    assert sinkhorn.marginal_error(torch.full((3, 4), 1 / 12)) == pytest.approx(0.0, abs=1e-6)


_ALONE = """
import os, sys, torch
from deepen.transport import sinkhorn
before = dict(os.environ)
sinkhorn.pot(torch.eye(3), 0.1, 10)
assert dict(os.environ) == before
assert not {"jax", "tensorflow", "cupy"} & set(sys.modules)
"""


def test_pot_loads_no_other_framework(tmp_path):
    for name in ("jax", "tensorflow", "cupy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('loaded')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", _ALONE], env=environment, check=True)
