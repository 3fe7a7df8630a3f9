"""OpT-DeUS, optimal transport depth up-scaling. arXiv 2508.08011, section 3.

One new block in each gap of the top half. The lower neighbour A is aligned to the upper neighbour B
by optimal transport, then the two are averaged; the tensors that write into the residual stream are
zeroed, so that the grown model computes what the base computes.

``structured``, the default, moves A along nothing but what leaves its function as it is: whole
neurons, KV groups, heads, and bases inside heads (``deepen.alignment``); then (1-t)·(aligned A) +
t·B, with the parents' row norms restored. It learned best (docs/results.md). That the aligned A
does compute what it did is proven on the base at hand; where it does not, nothing is aligned.
``published`` and ``normalised`` align row by row, as the paper does (``row_by_row``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_serializer, model_validator

from deepen.methods.mean import blended
from deepen.methods.method import Gap, Method, Prepared, Stack, between
from deepen.methods.row_by_row import FidelityOptions, row_by_row

if TYPE_CHECKING:
    from torch import Tensor


class Options(FidelityOptions):
    """Options of OpT-DeUS."""

    solver: Literal["exact", "entropic"] = "exact"
    """How `structured` matches neurons: one to one, or spread by the regularisation."""
    matched_share: float = Field(default=1.0, ge=0, le=1)
    """Share of an FFN's neurons, and of the KV groups, that `structured` averages, the best matched
    first; the others are the upper block's alone."""
    cost: Literal["weights", "activations"] = "weights"
    """What `structured` matches neurons and heads by: their weights, or what they compute."""
    calibration: Path | None = None
    """Text that `cost=activations` runs through the base once."""

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


def prepare(options: Options, stack: Stack) -> Prepared:
    """Match the blocks around every gap, and prove that the aligned ones compute what they did."""
    from deepen.alignment.activations import similarities
    from deepen.alignment.match import match_pairs
    from deepen.alignment.proof import proven

    if options.fidelity != "structured":
        return Prepared()
    pairs = [(insert.below, insert.above) for insert in stack.inserts]
    reg = options.regularisation if options.solver == "entropic" else None
    similar = (
        similarities(stack.model, pairs, options.calibration, stack.device, stack.progress)
        if options.calibration
        else None
    )
    matchers = match_pairs(
        stack.model,
        pairs,
        stack.device,
        reg=reg,
        max_iterations=options.max_iterations,
        similar=similar,
    )
    if reg is not None:  # a neuron that is spread over several computes something else by design
        return Prepared(matchers)
    return Prepared(*proven(stack.model, matchers, stack.device, stack.progress))


def fuse(options: Options, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Align, then average; every tensor keeps its shape."""
    if options.fidelity != "structured":
        yield from row_by_row(options, gap)
        return
    matcher = gap.state.get((gap.insert.below, gap.insert.above))
    aligned = matcher.aligned(options.matched_share) if matcher else gap.below.items()
    for name, tensor in aligned:
        if name in gap.tensors:
            yield name, blended(options, gap.tensors[name], tensor, gap.above[name], gap.t)


METHOD = Method(
    name="opt-deus",
    summary="optimal transport to the upper neighbour, mean, output projections zeroed",
    reference="arXiv:2508.08011",
    place=between("top"),
    fuse=fuse,
    options=Options,
    prepare=prepare,
)
