"""Spans of blocks, repeated: what SOLAR, Yi-9B, stacking and layers that pass twice are cases of.

Each span ``LO-HI`` stands ``1 + times`` times in the grown model, stacked (… HI LO … HI …) or
interleaved (LO LO LO+1 LO+1 …). The first appearance of a block counts as kept, and every other one
as new: a plain copy, unless ``output_scale`` silences it. Stacking whole models: arXiv 2405.15319;
docs/methods.md lists the cases. The function changes, and by default everything trains; ``trains``
says otherwise, also that nothing does.
"""

from typing import Literal

from pydantic import Field

from deepen.common.errors import DeepenError
from deepen.methods.method import Method, copied
from deepen.methods.options import LARGEST, FusedOptions
from deepen.planning.placement import PlacementRequest, middle, repeated, span
from deepen.planning.plan import MOST_BLOCKS, Plan
from deepen.records.growth import Trains


class Options(FusedOptions):
    """Options of repetition."""

    output_scale: float = Field(default=1.0, ge=0, le=LARGEST)
    """What is kept of the copies' output projections: `1` is a plain copy, `0` keeps the base's
    function."""
    span: str = Field(default="", max_length=10_000)
    """The blocks that are repeated, first to last, for example `45-51`; several as `4-6,12`; by
    default those in the middle, as many as `--new-layers` takes."""
    times: int = Field(default=1, ge=1, le=MOST_BLOCKS)
    """How often they are repeated; `1` makes one copy of each."""
    order: Literal["stacked", "interleaved"] = "stacked"
    """Whether a span is repeated as a whole, or block by block."""
    trains: Trains = "everything"
    """What is to be trained: `everything`, the copies alone (`new_blocks`), or `nothing`."""

    @property
    def trained(self) -> Trains | None:
        """What is to be trained."""
        return self.trains


def place(request: PlacementRequest) -> Plan:
    """Repeat the spans that the options name.

    Raises:
        DeepenError: A span is none, or lies outside the base or over another; or a placement or
            another number of new layers was asked for.
    """
    options: Options = request.options or Options()
    depth, new, times = request.depth, request.new_layers, options.times
    if request.placement is not None or request.per_gap != 1:
        raise DeepenError("Method 'repeat' places copies by its span; leave out the placement.")
    parts = options.span.split(",") if options.span else []
    spans = sorted(
        span(part if "-" in part else f"{part}-{part}", f"Span {part[:80]!r}") for part in parts
    )
    spans = spans or [middle(depth, new, times)]
    plan = repeated(depth, spans, times, interleaved=options.order == "interleaved")
    made = len(plan.new_blocks)
    if new not in (None, made):
        raise DeepenError(
            f"Span {options.span[:80]} at times={times} makes {made} new layers, not {new}; leave "
            f"out --new-layers, or name another span."
        )
    return plan


METHOD = Method(
    name="repeat",
    summary="plain copies of a span of blocks, stacked or interleaved",
    reference="arXiv:2405.15319",
    place=place,
    fuse=copied,
    copies=True,
    trains="everything",
    options=Options,
)
