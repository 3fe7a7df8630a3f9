"""Taking the mean of two tensors, and what options ask of the norms of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepen.base.anatomy import Role, TensorSpec
from deepen.methods.options import BlendedOptions, FusedOptions

if TYPE_CHECKING:
    from torch import Tensor

# Roles whose rows are features of the block.
_HIDDEN: frozenset[Role] = frozenset({"query", "key", "value", "gate", "up"})


def interpolate(below: Tensor, above: Tensor, t: float) -> Tensor:
    """Return (1 - t)·below + t·above in float32: the mean at t = ½."""
    return (1 - t) * below.float() + t * above.float()


def blended(
    options: BlendedOptions, spec: TensorSpec, below: Tensor, above: Tensor, t: float
) -> Tensor:
    """Return (1 - t)·below + t·above in float32, its row norms matched or restored if asked.

    Args:
        options: The method's options.
        spec: What the tensor is.
        below: The lower block's tensor, aligned.
        above: The upper block's.
        t: How far the new block lies through its gap; ``upper_share`` shifts it.
    """
    t = options.weight(t)
    if options.match_norms and is_hidden(spec):
        below = with_row_norms(below.float(), above.float().norm(dim=1))
    return with_mean_norms(options, spec, interpolate(below, above, t), below, above, t)


def with_mean_norms(
    options: FusedOptions, spec: TensorSpec, fused: Tensor, below: Tensor, above: Tensor, t: float
) -> Tensor:
    """Give a new weight's rows the mean norm of its parents' rows, if options ask for it."""
    if not restores(options, spec):
        return fused
    lower, upper = (parent.float().norm(dim=1) for parent in (below, above))
    return with_row_norms(fused, interpolate(lower, upper, t))


def is_hidden(spec: TensorSpec) -> bool:
    """Whether a tensor is a weight whose rows are features of the block."""
    return spec.is_weight and spec.role in _HIDDEN


def restores(options: FusedOptions, spec: TensorSpec) -> bool:
    """Whether a tensor is a hidden weight whose row norms are to be restored."""
    return options.restore_norms and is_hidden(spec)


def with_row_norms(weight: Tensor, norms: Tensor) -> Tensor:
    """Return a weight ``[out, in]`` with the row norms ``[out]``; rows of zeros stay zero."""
    import torch

    own = weight.norm(dim=1)
    return weight * torch.where(own > 0, norms / own, 1.0)[:, None]
