"""What it costs to move one neuron (a row of a weight matrix) onto another."""

import torch
from torch import Tensor


def in_range(tensor: Tensor) -> Tensor:
    """Divide a tensor by the power of two next to its largest magnitude.

    What is compared whatever its scale can then be multiplied without overflow, and is rounded as
    it would have been: a power of two changes no digit.
    """
    largest = tensor.abs().amax() if tensor.numel() else tensor.new_zeros(())
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)
    return torch.ldexp(tensor, -exponent)


def euclidean(rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """Return all distances ‖a_i - b_j‖ between rows ``[n, d]`` and ``[m, d]`` as ``[n, m]``."""
    return torch.cdist(rows_a, rows_b)


def in_units_of_spread(cost: Tensor) -> Tensor:
    """Divide a cost ``[n, m]``, in place, by the standard deviation of its entries.

    Whatever the weights' scale and width, a regularisation then means the same sharpness. Dividing
    by the maximum does not do that: distances between rows of a wide matrix differ by a few per
    cent of their size, and a plan at 0.06 of the maximum is uniform.
    """
    spread = cost.std(correction=0)
    return cost.div_(spread) if spread > 0 else cost
