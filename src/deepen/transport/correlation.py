"""Comparing what two blocks compute on the same tokens, in one pass and without keeping it.

Sums are float32 of values shifted by the first batch's mean, so that a large mean does not eat the
digits of a small variance.
"""

import torch
from torch import Tensor

from deepen.common.errors import DeepenError


class Covariance:
    """Covariance of two streams of activations."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.tokens = 0
        """Tokens seen so far."""
        self._shifts: tuple[Tensor, Tensor]
        self._sums: tuple[Tensor, Tensor]
        self._product: Tensor

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add activations ``[..., n]`` and ``[..., m]`` of the same tokens."""
        x, y = (values.detach().float().flatten(0, -2) for values in (x, y))
        if len(x) != len(y):
            raise DeepenError(
                f"Activations of {len(x)} and {len(y)} tokens cannot be compared; run both blocks "
                "on the same text."
            )
        if not self.tokens:
            self._shifts = x.mean(0), y.mean(0)
            self._sums = torch.zeros_like(x[0]), torch.zeros_like(y[0])
            self._product = x.new_zeros(x.shape[1], y.shape[1])
        x, y = (values - shift for values, shift in zip((x, y), self._shifts, strict=True))
        for total, values in zip(self._sums, (x, y), strict=True):
            total += values.sum(0)
        self._product.addmm_(x.T, y)
        self.tokens += len(x)

    def value(self) -> Tensor:
        """Return the covariance ``[n, m]``, sums divided by the number of tokens."""
        _need_tokens(self.tokens)
        means = [total / self.tokens for total in self._sums]
        return torch.addr(self._product / self.tokens, means[0], means[1], alpha=-1)


class Correlation:
    """Correlation of two streams, as a similarity for ``match_ffn``.

    For FFN neurons the activations are what goes into the down projection: ``[tokens, ffn]``.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._covariance = Covariance()
        self._variances = Variance(), Variance()

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add activations ``[..., n]`` and ``[..., m]`` of the same tokens."""
        self._covariance.update(x, y)
        for variance, values in zip(self._variances, (x, y), strict=True):
            variance.update(values)

    def value(self) -> Tensor:
        """Return the correlations ``[n, m]``, -1 to 1; 0 for what never changes."""
        covariance = self._covariance.value()
        for dim, variance in enumerate(self._variances):
            inverse = variance.value().rsqrt()
            covariance.mul_(torch.where(inverse.isfinite(), inverse, 0).unsqueeze(1 - dim))
        return covariance.clamp_(-1, 1)


class Variance:
    """Variance of a stream of activations."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.tokens = 0
        """Tokens seen so far."""
        self._shift: Tensor
        self._sums: Tensor

    def update(self, x: Tensor) -> None:
        """Add activations ``[..., n]``."""
        x = x.detach().float().flatten(0, -2)
        if not self.tokens:
            self._shift, self._sums = x.mean(0), x.new_zeros(2, x.shape[1])
        x = x - self._shift
        self._sums += torch.stack([x.sum(0), x.square().sum(0)])
        self.tokens += len(x)

    def value(self) -> Tensor:
        """Return the variance ``[n]``, sums divided by the number of tokens."""
        _need_tokens(self.tokens)
        mean, square = self._sums / self.tokens
        return (square - mean.square()).clamp(min=0)


class HeadCorrelation:
    """Correlation of what attention heads write, as a similarity for ``match_attention``.

    Head outputs depend on the basis inside a head; what they become in the residual stream does
    not. So head h of A and g of B are compared by the correlation of o_h z_h and o_g z_g, summed
    over the stream's dims: Σ (o_hᵀ o_g) ⊙ Cov(z_h, z_g), in matrices of head_dim × head_dim.
    """

    def __init__(self, heads: int) -> None:
        """Start with nothing seen.

        Args:
            heads: Number of query heads.
        """
        self.heads = heads
        """Number of query heads."""
        self._between = Covariance()
        self._within = [(Covariance(), Covariance()) for _ in range(heads)]

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add head outputs ``[..., heads·v]``, the inputs of A's and B's output projection."""
        self._between.update(x, y)
        by_head = (values.chunk(self.heads, dim=-1) for values in (x, y))
        for pair, *values in zip(self._within, *by_head, strict=True):
            for covariance, z in zip(pair, values, strict=True):
                covariance.update(z, z)

    def value(self, output_a: Tensor, output_b: Tensor) -> Tensor:
        """Return the correlations ``[heads, heads]``, -1 to 1; 0 for heads that write nothing.

        Args:
            output_a: A's output projection ``[hidden, heads·v]``.
            output_b: B's.
        """
        columns_a, columns_b = (
            output.float().T.unflatten(0, (self.heads, -1)) for output in (output_a, output_b)
        )
        covariance = self._between.value().unflatten(0, (self.heads, -1))
        flat = columns_b.flatten(0, 1).T
        between = torch.stack(
            [
                ((rows @ flat) * inner).unflatten(1, (self.heads, -1)).sum((0, 2))
                for rows, inner in zip(columns_a, covariance, strict=True)
            ]
        )
        for dim, columns in enumerate((columns_a, columns_b)):
            within = torch.stack([pair[dim].value() for pair in self._within])
            inverse = (columns @ columns.mT).mul(within).sum((1, 2)).rsqrt()
            between *= torch.where(inverse.isfinite(), inverse, 0).unsqueeze(1 - dim)
        return between.clamp_(-1, 1)


class StreamingCka:
    """Linear CKA of two streams of activations; three covariances of their width."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._covariances = Covariance(), Covariance(), Covariance()

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add activations ``[..., n]`` and ``[..., m]`` of the same tokens."""
        for covariance, pair in zip(self._covariances, ((x, y), (x, x), (y, y)), strict=True):
            covariance.update(*pair)

    def value(self) -> float:
        """Return CKA, 0 to 1; 0 if a stream never changes."""
        xy, xx, yy = (
            float(torch.linalg.matrix_norm(covariance.value(), dtype=torch.float64))
            for covariance in self._covariances
        )
        return xy**2 / (xx * yy) if xx * yy > 0 else 0.0


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of activations ``[tokens, n]`` and ``[tokens, m]``, 0 to 1.

    ‖XᵀY‖² / (‖XᵀX‖·‖YᵀY‖) of centred activations, Frobenius norms (Kornblith et al. 2019, arXiv
    1905.00414, section 3). It does not change with orthogonal maps or a scale of either.
    """
    cka = StreamingCka()
    cka.update(x, y)
    return cka.value()


def _need_tokens(tokens: int) -> None:
    """Refuse to average over nothing."""
    if not tokens:
        raise DeepenError("No activations were seen; give a calibration text of some tokens.")
