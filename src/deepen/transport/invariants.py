"""What two attention heads have in common, whatever the bases inside them.

Heads are compared by their products: W_oW_v, and W_qᵀ R W_k for a rotation R of every rotary plane
(in complex rows conj(q)·kᵀ, whose real and imaginary parts belong to cos and sin). With h a query
head, k its group and ′ for the other block,

    ⟨o_h v_k, o′_h′ v′_k′⟩ = Σ (o_hᵀ o′_h′) ⊙ (v_k v′_k′ᵀ),

so that Gram matrices of head_dim × head_dim are enough. All of it is float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deepen.transport.cost import in_range
from deepen.transport.gauge import Planes, to_planes


class Heads(NamedTuple):
    """An attention as rows per head; a bias is one more column of ``hidden``."""

    query: Tensor
    """``[heads, d, hidden]``."""
    key: Tensor
    """``[kv_heads, d, hidden]``."""
    value: Tensor
    """``[kv_heads, v, hidden]``."""
    output: Tensor
    """``[heads, v, hidden]``, the columns of the output projection."""


def head_similarity(a: Heads, b: Heads, rotary_dims: int, planes: Planes) -> Tensor:
    """Return the mean cosine ``[heads, heads]`` of A's and B's q/k and v/o products.

    A product of zeros is similar to nothing.
    """
    a, b = (Heads(*(in_range(rows.float()) for rows in x)) for x in (a, b))
    written = _cosines(
        _products(a.output, a.value, b.output, b.value),
        _squares(a.output, a.value),
        _squares(b.output, b.value),
    )
    turned_a, turned_b = (
        [to_planes(rows, rotary_dims, planes) for rows in (x.query, x.key)] for x in (a, b)
    )
    still_a, still_b = ([rows[:, rotary_dims:] for rows in (x.query, x.key)] for x in (a, b))
    attended = _cosines(
        _plane_products(*turned_a, *turned_b) + _products(*still_a, *still_b),
        _plane_squares(*turned_a) + _squares(*still_a),
        _plane_squares(*turned_b) + _squares(*still_b),
    )
    return (written + attended) / 2


def _products(y_a: Tensor, x_a: Tensor, y_b: Tensor, x_b: Tensor) -> Tensor:
    """Return ⟨y_hᵀ x_k, y′_h′ᵀ x′_k′⟩ ``[heads, heads]`` of rows ``[heads or groups, r, d]``."""
    groups, per_group = len(x_a), len(y_a) // len(x_a)
    if not y_a.shape[1]:
        return y_a.new_zeros(len(y_a), len(y_b))
    flat_x, flat_y = x_b.flatten(0, 1).T, y_b.flatten(0, 1).T
    products = []
    for head, rows in enumerate(y_a):
        if head % per_group == 0:
            inner = (x_a[head // per_group] @ flat_x).unflatten(1, (groups, 1, -1))
        outer = (rows @ flat_y).unflatten(1, (groups, per_group, -1))
        products.append((outer * inner).sum((0, 3)).flatten())
    return torch.stack(products)


def _squares(y: Tensor, x: Tensor) -> Tensor:
    """Return ‖y_hᵀ x_k‖² ``[heads]``."""
    inner = (x @ x.mT).repeat_interleave(len(y) // len(x), 0)
    return ((y @ y.mT) * inner).sum((1, 2))


def _plane_products(y_a: Tensor, x_a: Tensor, y_b: Tensor, x_b: Tensor) -> Tensor:
    """Return ``_products`` of complex rows ``[heads or groups, planes, d]``, summed over planes."""
    per_group = len(y_a) // len(x_a)
    outer = torch.einsum("hpd,gpd->phg", y_a, y_b.conj())
    inner = torch.einsum("hpd,gpd->phg", x_a.conj(), x_b)
    inner = inner.repeat_interleave(per_group, 1).repeat_interleave(per_group, 2)
    return (outer * inner).real.sum(0)


def _plane_squares(y: Tensor, x: Tensor) -> Tensor:
    """Return ‖conj(y_h) x_kᵀ‖² ``[heads]``, summed over planes."""
    sizes_y, sizes_x = (torch.linalg.vector_norm(z, dim=-1).square() for z in (y, x))
    return (sizes_y * sizes_x.repeat_interleave(len(y) // len(x), 0)).sum(1)


def _cosines(products: Tensor, squares_a: Tensor, squares_b: Tensor) -> Tensor:
    """Divide inner products ``[heads, heads]`` by norms; nothing is similar to zero."""
    norms = squares_a.clamp(min=0).sqrt()[:, None] * squares_b.clamp(min=0).sqrt()[None, :]
    return torch.where(norms > 0, products / torch.where(norms > 0, norms, 1), 0)
