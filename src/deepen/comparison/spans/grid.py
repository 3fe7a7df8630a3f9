"""The spans that a scan tries, and what trying them costs.

A span's repetition is computed from the base's own state above it, which all spans that end there
share: only the span, again, and the blocks above it run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.growth.config import grown_config
from deepen.planning.cost import forward_flops_per_token, reading_flops_per_token
from deepen.planning.parents import with_parents
from deepen.planning.placement import repeated
from deepen.records.scan import ScanRequest


class Span(NamedTuple):
    """Blocks that are repeated."""

    first: int
    """The first."""
    last: int
    """The last."""

    def __str__(self) -> str:
        """Return the form that ``--set span=`` reads."""
        return f"{self.first}-{self.last}"

    @property
    def length(self) -> int:
        """Number of blocks."""
        return self.last - self.first + 1


class Grid(NamedTuple):
    """The spans of a scan."""

    spans: tuple[Span, ...]
    """In the order in which they are tried: those with one last block together, from below."""
    left_out: int = 0
    """How many spans ``grow`` refuses."""
    because: str | None = None
    """Why it refuses the first of these."""


class Cost(NamedTuple):
    """What a scan runs."""

    block_runs: int
    """Blocks, each on all of the text."""
    passes: float
    """The work, output head included, in forward passes of the whole base."""


def spans_of(depth: int, longest: int, stride: int) -> tuple[Span, ...]:
    """List the spans that begin and end at multiples of a stride and are not too long.

    Args:
        depth: Number of blocks of the base.
        longest: Blocks of the longest span.
        stride: Between ends of spans.
    """
    ends = range(stride - 1, depth, stride)
    return tuple(
        Span(first, last)
        for last in ends
        for first in range(last - stride + 1, max(-1, last - longest), -stride)
    )


def grid_of(base: Model, request: ScanRequest) -> Grid:
    """List the spans that a scan tries: those that ``grow`` can repeat.

    Raises:
        DeepenError: There are none.
    """
    spans = spans_of(base.depth, request.longest, request.stride)
    if not spans:
        raise DeepenError(
            f"No span of at most {request.longest} of {base.depth} blocks begins and ends at "
            f"multiples of {request.stride}; give a smaller --stride, or a larger --longest."
        )
    refused = {span: _refusal(base, span, request.times) for span in spans}
    kept = tuple(span for span in spans if refused[span] is None)
    reasons = [reason for reason in refused.values() if reason is not None]
    if not kept:
        raise DeepenError(f"No span can be repeated here: {reasons[0]}")
    return Grid(kept, len(reasons), reasons[0] if reasons else None)


def _refusal(base: Model, span: Span, times: int) -> str | None:
    """Return why ``grow --method repeat`` would refuse a span; ``None`` if it would not."""
    try:
        plan = with_parents(repeated(base.depth, [span], times), base.anatomy, base.resolved, None)
        grown_config(base.config, base.resolved, base.family, plan)
    except DeepenError as error:
        return str(error)
    return None


def cost_of(base: Model, spans: Sequence[Span], times: int, length: int) -> Cost:
    """Count what a scan runs: the base, its blocks again from state to state, and every span.

    Args:
        base: The model.
        spans: What is tried, at least one span.
        times: How often a span is repeated.
        length: Tokens in a sequence.
    """
    depth = base.depth
    above = [span.length * times + depth - 1 - span.last for span in spans]
    runs = depth + max(span.last for span in spans) + 1 + sum(above)
    whole = reading_flops_per_token(base, depth, length)
    block = forward_flops_per_token(base, range(1), length)
    heads = (whole - depth * block) * (1 + len(spans))
    return Cost(runs, (runs * block + heads) / whole)


def check_budget(
    base: Model, request: ScanRequest, cost: Cost, budget: float | None, length: int
) -> None:
    """Refuse a scan that costs more than it may.

    Raises:
        DeepenError: It does; the sentence names a grid that would fit.
    """
    if budget is None or cost.passes <= budget:
        return
    if not (math.isfinite(budget) and budget > 0):
        raise DeepenError(f"--budget is a number of passes above 0, not {budget}.")
    said = (
        f"This scan takes {cost.passes:.1f} passes of the whole model, and --budget is {budget:g}"
    )
    for longest in range(request.longest, 0, -1):
        for stride in range(1, longest + 1):
            spans = spans_of(base.depth, longest, stride)
            if not spans or (longest, stride) == (request.longest, request.stride):
                continue
            passes = cost_of(base, spans, request.times, length).passes
            if passes <= budget:
                raise DeepenError(
                    f"{said}; --longest {longest} --stride {stride} takes {passes:.1f}."
                )
    raise DeepenError(f"{said}, in which no grid fits; raise it.")
