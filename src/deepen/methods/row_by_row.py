"""OpT-DeUS as its paper and its released code have it: each weight's rows aligned for themselves.

arXiv 2508.08011, section 3. With T the entropic plan between a weight's rows (cost: Euclidean
distance) and T_o that of the attention output:

    query, key, value    (1-t)·TᵀA + t·B
    FFN norm             (1-t)·A·(½T_o + ½I) + t·B
    gate, up             (1-t)·TᵀA' + t·B,  A' = A·T_o, T from the distances between A' and B
    everything else      (1-t)·A + t·B

at t = ½, or t = j / (m + 1) for the j-th of m blocks in a gap. Biases move with the rows of their
weight. The two readings differ in T alone (``Solve``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from deepen.base.anatomy import Role
from deepen.methods.mean import interpolate, is_hidden, restores, with_row_norms
from deepen.methods.method import Gap
from deepen.methods.options import LARGEST, BlendedOptions

if TYPE_CHECKING:
    from torch import Tensor

_ALIGNED: tuple[Role, ...] = ("query", "key", "value", "gate", "up")

Solve = Callable[["Tensor", "Tensor"], "Tensor"]
"""A's rows and B's, ``[n, d]`` → the matrix M ``[n, n]`` that aligns the one to the other, MᵀA."""


class FidelityOptions(BlendedOptions):
    """How literally OpT-DeUS is taken, and the units that each reading regularises in."""

    fidelity: Literal["published", "normalised", "structured"] = "structured"
    """`structured`: whole neurons and heads, so that the aligned block computes what it did;
    `normalised`: row by row, rescaled plan, scale-free cost; `published`: the released code's."""
    restore_norms: bool = True
    """Whether fused rows get the parents' mean norm back, which averaging unlike rows shrinks; by
    default only in `structured`."""
    regularisation: float = Field(default=0.06, ge=1e-6, le=LARGEST)
    """Entropic regularisation of `normalised` and of `solver=entropic`, in units of the cost's
    spread."""
    distance_regularisation: float = Field(default=0.06, ge=1e-6, le=LARGEST)
    """Entropic regularisation of `published`, in units of the distance between rows of weights."""
    max_iterations: int = Field(default=10_000, ge=1, le=10_000_000)
    """Upper limit of Sinkhorn iterations for one plan."""

    @property
    def _idle(self) -> str:
        """The regularisation that has no meaning here."""
        return "regularisation" if self.fidelity == "published" else "distance_regularisation"

    @model_validator(mode="before")
    @classmethod
    def _as_the_paper(cls, values: Any) -> Any:  # noqa: ANN401 (whatever is validated)
        """Leave norms as they come out where the paper's arithmetic is asked for."""
        if isinstance(values, dict) and values.get("fidelity", "structured") != "structured":
            return {"restore_norms": False, **values}
        return values

    @model_validator(mode="after")
    def _one_regularisation(self) -> Self:
        """Refuse the regularisation that would be ignored."""
        if self._idle in self.model_fields_set:
            both = {"regularisation", "distance_regularisation"}
            raise ValueError(
                f"{self._idle} has no meaning with fidelity={self.fidelity}, which takes "
                f"{(both - {self._idle}).pop()}"
            )
        return self

    @model_serializer(mode="wrap")
    def _meant(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Record only the regularisation that has a meaning."""
        return {name: value for name, value in dump(self).items() if name != self._idle}


def published(regularisation: float, max_iterations: int) -> Solve:
    """Return the arithmetic of the released code: POT's plan as it comes, with sums 1/n.

    So TᵀA is about n times too small, and a new block is close to t·B.

    Args:
        regularisation: Entropic regularisation, in units of the distance between rows.
        max_iterations: Upper limit of Sinkhorn iterations.
    """
    from deepen.transport import cost, sinkhorn

    def solve(a: Tensor, b: Tensor) -> Tensor:
        solved = sinkhorn.pot(cost.euclidean(a, b), regularisation, max_iterations)
        sinkhorn.warn_of_marginals(solved.marginal_error, "fidelity published")
        return solved.plan

    return solve


def normalised(regularisation: float, max_iterations: int) -> Solve:
    """Return the algorithm as written down: rows are pushed by n·T, the barycentric projection.

    The cost is in units of its own standard deviation, without which plans between wide layers are
    uniform.

    Args:
        regularisation: Entropic regularisation, in units of the cost's spread.
        max_iterations: Upper limit of Sinkhorn iterations.
    """
    import torch

    from deepen.transport import cost, sinkhorn

    def solve(a: Tensor, b: Tensor) -> Tensor:
        if not (a.any() and b.any()):
            # A new block that has not been trained yet has zero output projections: there is
            # nothing to match, and a uniform plan would average all rows away.
            return torch.eye(len(b), device=b.device)
        joined = cost.in_range(torch.cat([a, b]))
        distances = cost.in_units_of_spread(cost.euclidean(*joined.split([len(a), len(b)])))
        solved = sinkhorn.stabilised(distances, regularisation, max_iterations)
        sinkhorn.warn_of_marginals(solved.marginal_error, "fidelity normalised")
        return solved.plan.mul_(len(b))

    return solve


def row_by_row(options: FidelityOptions, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Yield what is to be made of a new block, every weight aligned by a plan of its own."""
    from deepen.alignment.experts import matched_experts

    solve = (
        published(options.distance_regularisation, options.max_iterations)
        if options.fidelity == "published"
        else normalised(options.regularisation, options.max_iterations)
    )
    below, above = matched_experts(gap.below, gap.above, gap.anatomy), gap.above
    t = options.weight(gap.t)
    stream: Tensor | None = None  # T_o
    rows: Tensor | None = None  # the map of the latest weight's rows
    for name, spec in gap.anatomy.block.items():
        if spec.role == "attention_output" and spec.is_weight:
            stream = solve(below[name].float(), above[name].float())
        if name not in gap.tensors:
            continue
        a, b = below[name].float(), above[name].float()
        norms = a.norm(dim=1) if restores(options, spec) else None
        if spec.role in _ALIGNED:
            if spec.is_weight:
                rows = None  # free the last map before the next one is made
                a = a @ stream if spec.role in ("gate", "up") and stream is not None else a
                rows = solve(a, b)
            assert rows is not None
            a = rows.T @ a
        elif spec.role == "ffn_norm" and not spec.bias and stream is not None:
            a = 0.5 * (a @ stream) + 0.5 * a
        if options.match_norms and is_hidden(spec):
            a = with_row_norms(a, b.norm(dim=1))
        fused = interpolate(a, b, t)
        if norms is not None:
            assert rows is not None
            # Of the rows that each row was made from, whatever the plan's own scale.
            moved = (rows.T @ norms) / rows.sum(0)
            fused = with_row_norms(fused, interpolate(moved, b.norm(dim=1), t))
        yield name, fused
