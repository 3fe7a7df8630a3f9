"""What methods share: taking the mean of two tensors, and scaling the result as options ask."""

import torch
from torch import Tensor

from deepen.anatomy import TensorSpec
from deepen.methods.base import BlendedOptions, FusedOptions

# Roles whose rows are features of the block, and those that size what its outputs learn from.
_HIDDEN = frozenset({"query", "key", "value", "gate", "up"})
_FEATURES = frozenset({"value", "up"})


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
    fused = interpolate(below, above, t)
    if restores(options, spec):
        lower, upper = (parent.float().norm(dim=1) for parent in (below, above))
        fused = with_row_norms(fused, interpolate(lower, upper, t))
    return fused


def is_hidden(spec: TensorSpec) -> bool:
    """Whether a tensor is a weight whose rows are features of the block."""
    return spec.is_weight and spec.role in _HIDDEN


def restores(options: FusedOptions, spec: TensorSpec) -> bool:
    """Whether a tensor is a hidden weight whose row norms are to be restored."""
    return options.restore_norms and is_hidden(spec)


def with_row_norms(weight: Tensor, norms: Tensor) -> Tensor:
    """Return a weight ``[out, in]`` with the row norms ``[out]``; rows of zeros stay zero."""
    found = weight.norm(dim=1)
    return weight * torch.where(found > 0, norms / found, 1.0)[:, None]


def is_silenced(options: FusedOptions, spec: TensorSpec) -> bool:
    """Whether a tensor becomes its silent value, whatever the method would make of it."""
    return options.output_scale == 0 and spec.silent is not None


def finished(options: FusedOptions, spec: TensorSpec, fused: Tensor) -> Tensor:
    """Scale outputs and features as options ask.

    Args:
        options: The method's options.
        spec: What the tensor is.
        fused: What the method made; of a tensor that is silenced only the shape counts.
    """
    if spec.silent is not None:
        if options.output_scale == 0:
            return torch.full_like(fused, spec.silent)
        if options.output_scale == 1:
            return fused
        return spec.silent + options.output_scale * (fused.float() - spec.silent)
    if spec.role in _FEATURES and options.feature_scale != 1:
        return options.feature_scale * fused.float()
    return fused
