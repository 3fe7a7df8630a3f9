"""OpT-DeUS, optimal transport depth up-scaling. arXiv 2508.08011, section 3.

One new block in each gap of the top half. The lower neighbour A is aligned to the upper neighbour B
by optimal transport, then the two are averaged; the tensors that write into the residual stream are
zeroed, so that the grown model computes what the base computes. Three fidelities:

``structured``, the default, moves A along nothing but what leaves its function as it is: whole
neurons, KV groups, heads, and bases inside heads (``deepen.matching``); then (1-t)·(aligned A) +
t·B, with the parents' row norms restored. It learned best (docs/results.md).

``published`` and ``normalised`` align row by row. With T the entropic plan between a weight's rows
(cost: Euclidean distance) and T_o that of the attention output:

    query, key, value    (1-t)·TᵀA + t·B
    FFN norm             (1-t)·A·(½T_o + ½I) + t·B
    gate, up             (1-t)·TᵀA' + t·B,  A' = A·T_o, T from the distances between A' and B
    everything else      (1-t)·A + t·B
    output projections   0

at t = ½, or t = j / (m + 1) for the j-th of m blocks in a gap. Biases move with the rows of their
weight. ``published`` is the arithmetic of the released code: POT's plan T as it comes, with sums
1/n, so that TᵀA is about n times too small and a new block is close to t·B. ``normalised`` is the
algorithm as written down: rows are pushed by n·T (the barycentric projection) and the cost is in
units of its own standard deviation, without which plans between wide layers are uniform.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, field_serializer, model_validator
from torch import Tensor

from deepen.anatomy import BlockAnatomy
from deepen.matching import Matcher, Similarity
from deepen.methods.base import BlendedOptions, Block, Method, Progress, between
from deepen.methods.blending import (
    blended,
    finished,
    interpolate,
    is_hidden,
    is_silenced,
    restores,
    with_row_norms,
)
from deepen.methods.experts import matched_experts
from deepen.plans import Insert
from deepen.transport import cost, sinkhorn

if TYPE_CHECKING:
    from deepen.base import Base

# POT's own threshold lies at float32's noise: plans that miss it can be as good as any.
_WORST_MARGINALS = 1e-2
# Tokens of calibration: enough for correlations of a few thousandths.
_SEQUENCES, _LENGTH = 64, 256
_ALIGNED = ("query", "key", "value", "gate", "up")


State = Mapping[tuple[int, int], Similarity]
"""Lower and upper block → how alike their activations are."""


class Options(BlendedOptions):
    """Options of OpT-DeUS."""

    fidelity: Literal["published", "normalised", "structured"] = "structured"
    """`structured`: whole neurons and heads, so that the aligned block computes what it did;
    `normalised`: row by row, rescaled plan, scale-free cost; `published`: the released code's."""
    restore_norms: bool = True
    """Whether fused rows get the parents' mean norm back, which averaging unlike rows shrinks; by
    default only in `structured`."""
    regularisation: float = Field(default=0.06, gt=0)
    """Entropic regularisation, in units of weight distance (published) or of the cost's spread."""
    max_iterations: int = Field(default=10_000, ge=1)
    """Upper limit of Sinkhorn iterations for one plan."""
    solver: Literal["exact", "entropic"] = "exact"
    """How `structured` matches neurons: one to one, or spread by the regularisation."""
    matched_share: float = Field(default=1.0, ge=0, le=1)
    """Share of an FFN's neurons, and of the KV groups, that `structured` averages, the best matched
    first; the others are the upper block's alone."""
    cost: Literal["weights", "activations"] = "weights"
    """What `structured` matches neurons and heads by: their weights, or what they compute."""
    calibration: Path | None = None
    """Text that `cost=activations` runs through the base once."""

    @model_validator(mode="before")
    @classmethod
    def _as_the_paper(cls, values: Any) -> Any:  # noqa: ANN401 (whatever is validated)
        """Leave norms as they come out where the paper's arithmetic is asked for."""
        if isinstance(values, dict) and values.get("fidelity", "structured") != "structured":
            return {"restore_norms": False, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse options that would be ignored."""
        own = (self.solver, self.cost, self.matched_share)
        if self.fidelity != "structured" and own != ("exact", "weights", 1):
            raise ValueError("solver, cost and matched_share belong to fidelity=structured")
        if (self.cost == "activations") != (self.calibration is not None):
            raise ValueError("cost=activations and calibration=TEXT belong together")
        return self

    @field_serializer("calibration")
    def _name(self, calibration: Path | None) -> str | None:
        """Record the text's name, and not where it lay."""
        return calibration.name if calibration else None


def prepare(
    options: Options,
    base: "Base",
    inserts: Sequence[Insert],
    seed: int,
    device: torch.device,
    progress: Progress,
) -> State:
    """Run the calibration text through the base, if neurons are matched by what they compute."""
    if options.calibration is None:
        return {}
    from deepen.calibration import compare_blocks, read_tokens

    tokens = read_tokens(base, options.calibration, _SEQUENCES, _LENGTH)
    pairs = [(insert.below, insert.above) for insert in inserts]
    found = compare_blocks(base, pairs, tokens, device, progress)
    return {pair: likeness.similarity for pair, likeness in found.items()}


def fuse(
    options: Options,
    below: Block,
    above: Block,
    anatomy: BlockAnatomy,
    insert: Insert,
    state: State,
) -> Iterator[tuple[str, Tensor]]:
    """Align, average, silence; every tensor keeps its shape."""
    if options.fidelity == "structured":
        similarity = state.get((insert.below, insert.above))
        made = _structured(options, below, above, anatomy, insert.t, similarity)
    else:
        made = _row_by_row(options, below, above, anatomy, options.weight(insert.t))
    for name, fused in made:
        yield name, finished(options, anatomy.block[name], fused)


def _structured(
    options: Options,
    below: Block,
    above: Block,
    anatomy: BlockAnatomy,
    t: float,
    similarity: Similarity | None,
) -> Iterator[tuple[str, Tensor]]:
    """Align along what a block is indifferent to."""
    reg = options.regularisation if options.solver == "entropic" else None
    matcher = Matcher(below, above, anatomy, reg=reg, similarity=similarity)
    for name, aligned in matcher.aligned(options.matched_share):
        yield name, blended(options, anatomy.block[name], aligned, above[name], t)


def _row_by_row(
    options: Options, below: Block, above: Block, anatomy: BlockAnatomy, t: float
) -> Iterator[tuple[str, Tensor]]:
    """Align each weight's rows for themselves, as the paper does."""
    below = matched_experts(below, above, anatomy)
    # T_o, and the map of the latest weight's rows: A → MᵀA.
    stream = rows = above[next(iter(anatomy.block))].new_empty(0)
    for name, spec in anatomy.block.items():
        if spec.role == "attention_output" and spec.is_weight:
            stream = _map(below[name].float(), above[name].float(), options)
        if is_silenced(options, spec):
            yield name, above[name]
            continue
        a, b = below[name].float(), above[name].float()
        norms = a.norm(dim=1) if restores(options, spec) else None
        if spec.role in _ALIGNED:
            if spec.is_weight:
                rows = rows.new_empty(0)  # free the last map before the next one is made
                a = a @ stream if spec.role in ("gate", "up") and len(stream) else a
                rows = _map(a, b, options)
            a = rows.T @ a
        elif spec.role == "ffn_norm" and not spec.bias and len(stream):
            a = 0.5 * (a @ stream) + 0.5 * a
        if options.match_norms and is_hidden(spec):
            a = with_row_norms(a, b.norm(dim=1))
        fused = interpolate(a, b, t)
        if norms is not None:
            # Of the rows that each row was made from, whatever the plan's own scale.
            moved = (rows.T @ norms) / rows.sum(0)
            fused = with_row_norms(fused, interpolate(moved, b.norm(dim=1), t))
        yield name, fused


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
    prepare=prepare,
)
