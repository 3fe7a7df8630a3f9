"""The freedom inside one matched attention head, in closed form.

Two weights of a KV group meet only in a product: keys x and the queries y_h of its heads in
y_hᵀ x, values x and the output columns y_h in y_hᵀ x. So x ← T x, y_h ← T⁻ᵀ y_h changes nothing:

- with any invertible T where no rotary embedding acts (``linear_map``): both blocks are brought
  into the balanced gauge, x xᵀ = Σ_h y_h y_hᵀ, which leaves an orthogonal freedom, and that is
  solved by Procrustes (Schönemann 1966);
- with T a complex number per plane where one acts (``plane_factors``), x and y_h being written as
  complex rows: its size balances ‖x‖² = Σ_h ‖y_h‖², its angle is Procrustes in the plane.

T ends in the gauge of B. Everything here is float64. What zero or rank-deficient weights do not
determine stays as it is.
"""

from typing import Literal

import torch
from torch import Tensor

Planes = Literal["half", "adjacent"]
"""Of D rotated dims, plane p is (p, p + D/2) if ``half``, (2p, 2p + 1) if ``adjacent``."""

# Gram matrices with a smaller eigenvalue, relative to their largest, count as rank-deficient: the
# balanced gauge would then blow up what is close to rounding in 16-bit weights.
_RANK = 1e-6
# Pulls what Procrustes leaves undetermined to the identity: above float32's rounding squared, far
# below what is determined.
_PULL = 1e-10


def to_planes(rows: Tensor, rotary_dims: int, planes: Planes) -> Tensor:
    """Write the rotated dims of heads as complex rows.

    Args:
        rows: ``[..., head_dim, hidden]``; the first ``rotary_dims`` dims are rotated.
        rotary_dims: D, even.
        planes: Which two dims a plane is.

    Returns:
        ``[..., D/2, hidden]`` complex: the planes' first dims + i · their second dims.
    """
    first, second = plane_dims(rotary_dims, planes)
    return torch.complex(rows[..., first, :], rows[..., second, :])


def plane_dims(rotary_dims: int, planes: Planes) -> tuple[Tensor, Tensor]:
    """Return the first and second dims ``[D/2]`` of every rotary plane."""
    dims, half = torch.arange(rotary_dims), rotary_dims // 2
    return (dims[:half], dims[half:]) if planes == "half" else (dims[0::2], dims[1::2])


def plane_factors(x_a: Tensor, y_a: Tensor, x_b: Tensor, y_b: Tensor) -> Tensor:
    """Return the complex factor of x for every plane; that of y is its inverse conjugate.

    Args:
        x_a: A's keys, ``[planes, hidden]`` complex.
        y_a: A's queries of the same group, ``[heads, planes, hidden]`` complex.
        x_b: B's keys.
        y_b: B's queries, in the order in which heads were matched.

    Returns:
        ``[planes]`` complex128.
    """
    x_a, y_a, x_b, y_b = (z.to(torch.complex128) for z in (x_a, y_a, x_b, y_b))
    norms = [torch.linalg.vector_norm(x, dim=-1) for x in (x_a, x_b)]
    norms += [torch.linalg.vector_norm(y, dim=(0, 2)) for y in (y_a, y_b)]
    alive = torch.stack([norm > _RANK * norm.max() for norm in norms]).all(0)
    scale_a, scale_b = (
        torch.where(alive, y / torch.where(alive, x, 1), 1).sqrt()
        for x, y in zip(norms[:2], norms[2:], strict=True)
    )
    both = scale_a * scale_b
    overlap = both * (x_a.conj() * x_b).sum(-1) + (y_a.conj() * y_b).sum((0, 2)) / both
    size = overlap.abs()
    angle = torch.where(size > 0, overlap / torch.where(size > 0, size, 1), 1)
    return angle * (scale_a / scale_b)


def plane_map(factors: Tensor, head_dim: int, planes: Planes) -> Tensor:
    """Return plane factors ``[planes]`` as a real map ``[head_dim, head_dim]``, else identity."""
    first, second = (dims.to(factors.device) for dims in plane_dims(2 * len(factors), planes))
    whole = torch.eye(head_dim, dtype=torch.float64, device=factors.device)
    whole[first, first] = whole[second, second] = factors.real
    whole[second, first] = factors.imag
    whole[first, second] = -factors.imag
    return whole


def linear_map(x_a: Tensor, y_a: Tensor, x_b: Tensor, y_b: Tensor) -> Tensor:
    """Return the invertible T ``[r, r]`` that brings x_a, y_a into the gauge of x_b, y_b.

    Args:
        x_a: A's keys or values, ``[r, hidden]``.
        y_a: A's queries, or output columns as rows, of the same group: ``[heads, r, hidden]``.
        x_b: B's keys or values.
        y_b: B's, in the order in which heads were matched.

    Returns:
        T float64, to be used as x ← T x and y ← T⁻ᵀ y.
    """
    x_a, x_b = x_a.double(), x_b.double()
    y_a, y_b = (y.double().transpose(0, 1).flatten(1) for y in (y_a, y_b))
    balance_a, balance_b = _balances(x_a @ x_a.T, y_a @ y_a.T, x_b @ x_b.T, y_b @ y_b.T)
    overlap = balance_b @ (x_b @ x_a.T) @ balance_a.T
    overlap += torch.linalg.inv(balance_b).T @ (y_b @ y_a.T) @ torch.linalg.inv(balance_a)
    return torch.linalg.solve(balance_b, _orthogonal(overlap) @ balance_a)


def _orthogonal(overlap: Tensor) -> Tensor:
    """Return the orthogonal U ``[r, r]`` of largest ⟨U, overlap⟩, and of those the nearest to I."""
    size = torch.linalg.matrix_norm(overlap)
    if not size > 0:
        return torch.eye(len(overlap), dtype=overlap.dtype, device=overlap.device)
    pulled = overlap / size
    pulled.diagonal().add_(_PULL)
    left, _, right = torch.linalg.svd(pulled)
    return left @ right


def _balances(x_a: Tensor, y_a: Tensor, x_b: Tensor, y_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps into the balanced gauge of A and B, from Gram matrices ``[r, r]``.

    If one of the four is rank-deficient, both blocks are balanced by one number only; if one is
    zero, not at all.
    """
    grams = (x_a, y_a, x_b, y_b)
    if all(_full_rank(gram) for gram in grams):
        return _balance(x_a, y_a), _balance(x_b, y_b)
    identity = torch.eye(len(x_a), dtype=x_a.dtype, device=x_a.device)
    traces = [gram.trace() for gram in grams]
    if not all(trace > 0 for trace in traces):
        return identity, identity
    return identity * (traces[1] / traces[0]) ** 0.25, identity * (traces[3] / traces[2]) ** 0.25


def _balance(x: Tensor, y: Tensor) -> Tensor:
    """Return the symmetric R with R x R = R⁻¹ y R⁻¹, for positive definite Grams x and y.

    R² is the geometric mean of x⁻¹ and y: x^-½ (x^½ y x^½)^½ x^-½ (Bhatia 2007, chapter 4).
    """
    root, inverse_root = _power(x, 0.5), _power(x, -0.5)
    return _power(inverse_root @ _power(root @ y @ root, 0.5) @ inverse_root, 0.5)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Raise a symmetric positive definite matrix to a power."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * values.clamp(min=torch.finfo(values.dtype).tiny) ** exponent @ vectors.T


def _full_rank(gram: Tensor) -> bool:
    """Say whether a Gram matrix has no eigenvalue that is zero or close to it."""
    values = torch.linalg.eigvalsh(gram)
    return bool(values[0] > _RANK * values[-1])
