"""Entropic optimal transport with uniform marginals: argmin ⟨T, C⟩ - reg·H(T).

Two solvers give one kind of answer: ``pot`` is what the published OpT-DeUS code calls, and
``stabilised`` cannot underflow.
"""

import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ABSORB_ABOVE = 30.0
_CHECK_EVERY = 10
_CHUNK_ELEMENTS = 2**20


# POT's own threshold lies at float32's noise: plans that miss it can be as good as any.
_WORST_MARGINALS = 1e-2


class TransportWarning(UserWarning):
    """A plan that does not meet its marginals as well as it should."""


def warn_of_marginals(error: float, how: str) -> None:
    """Warn of a plan that does not meet its marginals.

    Args:
        error: How far it misses them; NaN misses them too.
        how: What asked for the plan, for the sentence.
    """
    if not error <= _WORST_MARGINALS:
        warnings.warn(
            f"Sinkhorn found no plan that meets its marginals ({how}); allow more with "
            f"max_iterations, or raise the regularisation.",
            TransportWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class Transport:
    """A transport plan and how well it was solved."""

    plan: Tensor
    """``[n, m]``; rows should sum to 1/n and columns to 1/m."""
    iterations: int
    """Sinkhorn iterations run."""
    marginal_error: float
    """L1 distance of the row and column sums from the uniform marginals, the larger of the two."""
    converged: bool
    """Whether the solver's own stopping rule was met."""


def marginal_error(plan: Tensor) -> float:
    """Return the larger L1 distance of a plan's row and column sums from 1/n and 1/m."""
    n, m = plan.shape
    return max(
        float((plan.sum(1) - 1 / n).abs().sum()),
        float((plan.sum(0) - 1 / m).abs().sum()),
    )


def pot(cost: Tensor, reg: float, max_iterations: int) -> Transport:
    """Solve as the published OpT-DeUS code does: POT's Sinkhorn-Knopp with its threshold 1e-9.

    Where exp(-C/reg) underflows, POT stops at once and its plan is about zero; the result then says
    that it did not converge.

    Args:
        cost: ``[n, m]`` float32.
        reg: Entropic regularisation, in the units of the cost.
        max_iterations: Upper limit.
    """
    ot = _pot()
    n, m = cost.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what POT warns of is told by the result
        plan, log = ot.sinkhorn(
            cost.new_full((n,), 1 / n),
            cost.new_full((m,), 1 / m),
            cost,
            reg,
            numItermax=max_iterations,
            stopThr=1e-9,
            log=True,
        )
    errors = log["err"]
    converged = bool(errors) and float(errors[-1]) < 1e-9
    return Transport(plan, log["niter"] + 1, marginal_error(plan), converged)


def _pot() -> Any:  # noqa: ANN401 (POT has no types)
    """Import POT with no framework beside torch; JAX would take most of a GPU's memory at once."""
    others = [f"POT_BACKEND_DISABLE_{name}" for name in ("JAX", "TENSORFLOW", "CUPY")]
    ours = [name for name in others if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, "1"))
    try:
        import ot
    finally:
        for name in ours:  # only the import reads them
            del os.environ[name]
    return ot


def stabilised(cost: Tensor, reg: float, max_iterations: int, tolerance: float = 1e-3) -> Transport:
    """Solve with scalings of a kernel that is rebuilt in the log domain whenever they grow large.

    T = diag(u) K diag(v) with K_ij = exp(f_i + g_j - C_ij / reg). A rebuild sets f and g by one
    exact log-domain iteration (Peyré and Cuturi 2019, section 4.4; Schmitzer 2019). After it the
    columns of K sum to 1/m and its rows to at least 1/(n·m), so that no division is by zero for any
    cost and any reg > 0.

    Args:
        cost: ``[n, m]``, finite.
        reg: Entropic regularisation, in the units of the cost.
        max_iterations: Upper limit.
        tolerance: Stop when the row sums are within this L1 distance of 1/n.

    Memory: one matrix of the cost's size beside the cost itself.

    Returns:
        A plan whose columns sum to 1/m to rounding and whose rows do to ``marginal_error``.
    """
    n, m = cost.shape
    f, g = cost.new_zeros(n), cost.new_zeros(m)
    kernel = _rebuild(cost, reg, f, g, torch.empty_like(cost))
    u, v = cost.new_ones(n), cost.new_ones(m)
    error = math.inf
    iteration = 0
    while iteration < max_iterations:
        iteration += 1
        row_sums = kernel @ v
        if iteration % _CHECK_EVERY == 1:
            error = float((u * row_sums - 1 / n).abs().sum())
            if error <= tolerance:
                break
        u = (1 / n) / row_sums
        v = (1 / m) / (u @ kernel)
        if float(torch.maximum(u.log().abs().max(), v.log().abs().max())) > _ABSORB_ABOVE:
            f, g = f + u.log(), g + v.log()
            kernel = _rebuild(cost, reg, f, g, kernel)
            u, v = torch.ones_like(u), torch.ones_like(v)
    plan = kernel.mul_(u[:, None]).mul_(v[None, :])
    return Transport(plan, iteration, marginal_error(plan), error <= tolerance)


def _rebuild(cost: Tensor, reg: float, f: Tensor, g: Tensor, kernel: Tensor) -> Tensor:
    """Run one log-domain iteration, updating f, g and their kernel ``[n, m]`` in place."""
    n, m = cost.shape
    f.copy_(-math.log(n) - _log_sum_exp(cost, reg, g))
    g.copy_(-math.log(m) - _log_sum_exp(cost.T, reg, f))
    torch.div(cost, -reg, out=kernel)
    return kernel.add_(f[:, None]).add_(g[None, :]).exp_()


def _log_sum_exp(cost: Tensor, reg: float, potential: Tensor) -> Tensor:
    """Return log Σ_j exp(potential_j - C_ij / reg) for every row i, a few rows at a time."""
    rows = max(1, _CHUNK_ELEMENTS // cost.shape[1])
    return torch.cat([torch.logsumexp(potential - part / reg, dim=1) for part in cost.split(rows)])
