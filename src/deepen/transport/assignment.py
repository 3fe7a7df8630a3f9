"""Exact assignment: the permutation of least cost, the sharp end of optimal transport."""

import torch
from torch import Tensor

from deepen.common.errors import DeepenError


def assign(cost: Tensor) -> Tensor:
    """Match every column to a row of its own, at the least sum of costs.

    SciPy's shortest augmenting paths (Crouse 2016) on a float64 copy; the same cost gives the same
    matching. A constant cost, which determines nothing, gives the identity.

    Args:
        cost: ``[n, n]``, from row i (a neuron of A) to column j (a neuron of B).

    Returns:
        ``[n]`` int64 on the cost's device: for every column j the row that goes there.

    Raises:
        DeepenError: The cost is not square or not finite.
    """
    from scipy.optimize import linear_sum_assignment

    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise DeepenError(
            f"An assignment needs as many rows as columns, not {list(cost.shape)}; "
            "align blocks of the same shape."
        )
    if not len(cost):
        return torch.empty(0, dtype=torch.int64, device=cost.device)
    low, high = (float(value) for value in cost.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise DeepenError(
            "A cost of assignment is infinite or not a number; check the weights for such values."
        )
    if low == high:
        return torch.arange(len(cost), device=cost.device)
    rows, columns = linear_sum_assignment(cost.detach().to("cpu", torch.float32).numpy())
    source = torch.empty(len(cost), dtype=torch.int64)
    source[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return source.to(cost.device)


def best_share(similarity: Tensor, share: float) -> Tensor:
    """Return, as ``[n]`` bool, which similarities ``[n]`` are in the largest share of them."""
    count = round(share * len(similarity))
    chosen = torch.zeros_like(similarity, dtype=torch.bool)
    chosen[torch.argsort(similarity, descending=True, stable=True)[:count]] = True
    return chosen


def choose_rows(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the rows of ``one``, ``[n, …]``, that are chosen, ``[n]`` bool, and else the other's.

    The result has the dtype of ``one``.
    """
    mask = chosen.view(-1, *(1 for _ in one.shape[1:]))
    return torch.where(mask, one, other.to(one.dtype))
