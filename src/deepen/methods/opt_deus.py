"""OpT-DeUS, optimal transport depth up-scaling. arXiv 2508.08011, section 3.

One new block in each gap of the top half. Row by row, the lower neighbour A is aligned to the upper
neighbour B by entropic optimal transport, then the two are averaged; the tensors that write into
the residual stream are zeroed, so that the grown model computes what the base computes.

With T the plan of a weight's rows (cost: Euclidean distance) and T_o that of the attention output:

    query, key, value    (1-t)·TᵀA + t·B
    FFN norm             (1-t)·A·(½T_o + ½I) + t·B
    gate, up             (1-t)·TᵀA' + t·B,  A' = A·T_o, T from the distances between A' and B
    everything else      (1-t)·A + t·B
    output projections   0

at t = ½, or t = j / (m + 1) for the j-th of m blocks in a gap. Biases move with the rows of their
weight.

``published`` is the arithmetic of the released code: POT's plan T as it comes, with sums 1/n, so
that TᵀA is about n times too small and a new block is close to t·B. ``normalised`` is the algorithm
as written down: rows are pushed by n·T (the barycentric projection) and the cost is in units of its
own standard deviation, without which plans between wide layers are uniform.
"""

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deepen.anatomy import BlockAnatomy
from deepen.methods.base import Block, Method, between, interpolate, silenced
from deepen.methods.base import Options as BaseOptions
from deepen.methods.experts import matched_experts
from deepen.transport import cost, sinkhorn

# POT's own threshold lies at float32's noise: plans that miss it can be as good as any.
_WORST_MARGINALS = 1e-2
_ALIGNED = ("query", "key", "value", "gate", "up")


class Options(BaseOptions):
    """Options of OpT-DeUS."""

    fidelity: Literal["published", "normalised"] = "normalised"
    """`published`: the released code's numbers; `normalised`: rescaled plan, scale-free cost."""
    regularisation: float = Field(default=0.06, gt=0)
    """Entropic regularisation, in units of weight distance (published) or of the cost's spread."""
    max_iterations: int = Field(default=10_000, ge=1)
    """Upper limit of Sinkhorn iterations for one plan."""


def fuse(
    options: Options, below: Block, above: Block, anatomy: BlockAnatomy, t: float, state: None
) -> Iterator[tuple[str, Tensor]]:
    """Align, average, silence; every tensor keeps its shape."""
    below = matched_experts(below, above, anatomy)
    # T_o, and the map of the latest weight's rows: A → MᵀA.
    stream = rows = above[next(iter(anatomy.block))].new_empty(0)
    for name, spec in anatomy.block.items():
        if spec.role == "attention_output" and spec.is_weight:
            stream = _map(below[name].float(), above[name].float(), options)
        if spec.writes_residual:
            yield name, silenced(above[name], spec)
            continue
        a, b = below[name].float(), above[name].float()
        if spec.role in _ALIGNED:
            if spec.is_weight:
                rows = rows.new_empty(0)  # free the last map before the next one is made
                a = a @ stream if spec.role in ("gate", "up") and len(stream) else a
                rows = _map(a, b, options)
            a = rows.T @ a
        elif spec.role == "ffn_norm" and not spec.bias and len(stream):
            a = 0.5 * (a @ stream) + 0.5 * a
        yield name, interpolate(a, b, t)


def _map(a: Tensor, b: Tensor, options: Options) -> Tensor:
    """Return the ``[n, n]`` matrix M that aligns A's rows to B's as MᵀA, for ``[n, d]`` weights."""
    if options.fidelity == "normalised" and not (a.any() and b.any()):
        # A new block that has not been trained yet has zero output projections: there is nothing
        # to match, and a uniform plan would average all rows away.
        return torch.eye(len(b), device=b.device)
    distances = cost.euclidean(a, b)
    if options.fidelity == "published":
        solved = sinkhorn.pot(distances, options.regularisation, options.max_iterations)
        matrix = solved.plan
    else:
        distances = cost.in_units_of_spread(distances)
        solved = sinkhorn.stabilised(distances, options.regularisation, options.max_iterations)
        matrix = solved.plan.mul_(len(b))
    if solved.marginal_error > _WORST_MARGINALS:
        warnings.warn(
            f"Sinkhorn found no plan that meets its marginals (fidelity {options.fidelity}).",
            sinkhorn.TransportWarning,
            stacklevel=2,
        )
    return matrix


METHOD = Method(
    name="opt-deus",
    summary="optimal transport to the upper neighbour, mean, output projections zeroed",
    reference="arXiv:2508.08011",
    place=between("top"),
    fuse=fuse,
    options=Options,
    preserves_function=True,
)
