"""How well two blocks are aligned, in numbers; of activations see ``correlation``."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from deepen.transport.heads import HeadMatch
from deepen.transport.neurons import NeuronMatch


@dataclass(frozen=True)
class MatchQuality:
    """How well neurons, or query heads, of two blocks were matched.

    Costs are 1 - similarity; similarities are means over the neurons of B.
    """

    units: int
    """Neurons or heads."""
    similarity_before: float
    """Of those of the same index, signed: what a plain mean averages."""
    similarity_after: float
    """Of what was matched, over the shares of an entropic plan."""
    similarity_best: float
    """Of B's with the nearest one of A, were it free to be used twice; matching cannot beat it."""
    cost_before: float
    """Transport cost of leaving everything where it is."""
    cost_after: float
    """Transport cost of the match."""
    effective_matches: float
    """Neurons of B that one of A is spread over: exp of the mean entropy; 1 if exact."""
    diagonal_mass: float
    """Share of the mass that stays where it is, 0 to 1."""
    marginal_error: float
    """How far an entropic plan is from its marginals; 0 if exact."""


def neuron_quality(match: NeuronMatch) -> MatchQuality:
    """Say how well neurons were matched."""
    plan = match.plan
    return _quality(
        match.similarity_before,
        match.similarity_after,
        match.similarity_best,
        effective_matches=1.0 if plan is None else effective_matches(plan),
        diagonal=_share_in_place(match.source) if plan is None else diagonal_mass(plan),
        marginal_error=match.marginal_error,
    )


def head_quality(match: HeadMatch) -> MatchQuality:
    """Say how well query heads were matched."""
    similarity, columns = match.similarity, torch.arange(len(match.heads))
    return _quality(
        similarity.diagonal(),
        similarity[match.heads, columns.to(match.heads.device)],
        similarity.amax(0),
        effective_matches=1.0,
        diagonal=_share_in_place(match.heads),
        marginal_error=0.0,
    )


def _quality(
    before: Tensor,
    after: Tensor,
    best: Tensor,
    *,
    effective_matches: float,
    diagonal: float,
    marginal_error: float,
) -> MatchQuality:
    """Average over neurons or heads ``[n]``."""
    start, end, bound = (float(values.double().mean()) for values in (before, after, best))
    return MatchQuality(
        len(before),
        start,
        end,
        bound,
        1 - start,
        1 - end,
        effective_matches,
        diagonal,
        marginal_error,
    )


def _share_in_place(source: Tensor) -> float:
    """Return which share of a permutation ``[n]`` moves nothing."""
    return float((source == torch.arange(len(source), device=source.device)).double().mean())


def mean_cost(cost: Tensor, plan: Tensor | None = None) -> float:
    """Return the transport cost Σ T_ij C_ij / Σ T_ij of a cost ``[n, n]``.

    Without a plan ``[n, n]``, that of the identity.
    """
    if plan is None:
        return float(cost.diagonal().double().mean())
    moved = plan.abs()
    return float(torch.einsum("ij,ij->i", moved, cost).double().sum() / moved.double().sum())


def row_matches(plan: Tensor) -> Tensor:
    """Return exp of every row's entropy ``[n]``: 1 where a plan ``[n, m]`` is sharp, m if uniform.

    Signs of a plan and its scale do not matter; a row without mass counts as matching nothing, 1.
    """
    rows = plan.abs()
    sums = rows.sum(1)
    # H = log s - Σ t·log t / s for a row t of sum s, with no second matrix of log-shares.
    entropy = torch.special.entr(rows).sum(1) / torch.where(sums > 0, sums, 1)
    return torch.where(sums > 0, (entropy + sums.log()).exp(), 1).clamp(min=1)


def effective_matches(plan: Tensor) -> float:
    """Return exp of the mean row entropy of a plan ``[n, m]``, 1 to m."""
    return float(row_matches(plan).double().log().mean().exp())


def diagonal_mass(plan: Tensor) -> float:
    """Return which share of a plan ``[n, n]`` lies on its diagonal."""
    return float(plan.diagonal().abs().double().sum() / plan.abs().double().sum())


def mean_cosine(rows_a: Tensor, rows_b: Tensor) -> float:
    """Return the mean cosine of rows ``[n, d]`` of the same index; 0 for rows of zeros."""
    return float(cosine_similarity(rows_a, rows_b, dim=1).double().mean())


def norm_ratio(fused: Tensor, above: Tensor) -> float:
    """Return the median of ‖fused row‖ / ‖B's row‖ for weights ``[n, d]``; nan if B is zero."""
    new, old = (
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in (fused, above)
    )
    alive = old > 0
    return float((new[alive] / old[alive]).median())


def chance_cosine(n: int, d: int) -> float:
    """Return the median best-match cosine of a row with n unrelated Gaussian rows ``[n, d]``.

    A cosine c of random directions has (1 + c)/2 ~ Beta((d-1)/2, (d-1)/2), and the largest of n
    independent ones has the n-th power of that distribution: c = 2·F⁻¹(2^(-1/n)) - 1. For the
    joint similarity of gated neurons, which may be flipped, take (2n, 3·hidden); for plain ones
    (n, 2·hidden).
    """
    from scipy.special import betaincinv

    if d < 2:
        return 1.0 if n > 1 else 0.0
    shape = (d - 1) / 2
    return 2 * float(betaincinv(shape, shape, math.exp(-math.log(2) / n))) - 1


def heat_map(plan: Tensor, size: int = 48, *, sort: bool = True) -> list[list[float]]:
    """Shrink a plan ``[n, m]`` to at most ``size × size``, so that its structure can be seen.

    Columns are sorted by their largest share, the surest matches first; rows by the column that
    most of them goes to. A sharp plan becomes a diagonal, a uniform one an even field, and what
    lies between fades along the diagonal. Any permutation looks the same then: leave it unsorted
    to see what moves how far.

    Args:
        plan: ``[n, m]``; signs do not matter.
        size: Rows and columns at most.
        sort: Whether rows and columns are put into that order.

    Returns:
        Mean mass per cell in units of the uniform plan's.
    """
    mass = plan.abs()
    if sort:
        order = torch.argsort(mass.amax(0), descending=True, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        mass = mass[torch.argsort(place[mass.argmax(1)], stable=True)][:, order]
    total = float(mass.double().sum()) or 1.0
    for _ in range(2):  # first rows, then columns, which are rows after a transposition
        mass = _bins(mass, min(size, len(mass))).T
    cells: list[list[float]] = (mass * (plan.numel() / total)).tolist()
    return cells


def _bins(rows: Tensor, count: int) -> Tensor:
    """Average neighbouring rows ``[n, m]`` into ``[count, m]``, as evenly as n allows."""
    bins = torch.arange(len(rows), device=rows.device) * count // len(rows)
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, bins, rows)
    return sums / bins.bincount(minlength=count)[:, None]
