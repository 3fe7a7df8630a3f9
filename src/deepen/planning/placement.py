"""Where new blocks go: strategies that choose gaps.

Gap g lies above block g. A base of L blocks has the L - 1 inner gaps 0..L-2, each between two
blocks; methods that copy can also use the open gaps L - 1 above the last block and, if it is
listed, -1 below the first one. The regions of the named strategies are drawn in docs/methods.md,
and what is measured for the others is told in docs/placement.md.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from deepen.common.errors import DeepenError, unknown
from deepen.planning.pattern import Rule, spread_periods
from deepen.planning.plan import MOST_BLOCKS, Insert, Keep, Plan, insert_after

SCORED = {
    "quality": -1,
    "quality-low": 1,
    "importance": 1,
    "importance-high": -1,
    "influence": 1,
    "influence-high": -1,
    "gradient": -1,
}
"""Placements by measurement → sign of a score in the order they prefer."""
NAMES = ("top", "middle", "bottom", "top-bottom", "uniform", *SCORED)
PERIODS = "periods"
"""Placement along a pattern of block types; see ``planning/pattern.py``."""
SPREAD = "spread"
"""Placement in every second gap of a region; arXiv 2410.02330 grows a region of shallow blocks."""


@dataclass(frozen=True)
class Placement:
    """A strategy by name, or an explicit list of gaps."""

    name: str
    """One of NAMES, ``periods``, ``spread`` or ``after``."""
    after: tuple[int, ...] = ()
    """For ``after``: one gap per new block, repeated for several in one gap."""
    region: tuple[int, ...] = ()
    """For ``spread``: the lowest gap and the highest."""

    def __str__(self) -> str:
        """Return the form that ``parse`` reads."""
        if self.region:
            return f"{self.name}:{'-'.join(map(str, self.region))}"
        return f"after:{','.join(map(str, self.after))}" if self.after else self.name

    @property
    def measured(self) -> str | None:
        """What it is measured by, if it is: the name without ``-high`` or ``-low``."""
        return self.name.partition("-")[0] if self.name in SCORED else None


@dataclass(frozen=True)
class PlacementRequest:
    """Where the user wants new blocks; what is ``None`` is left to the method."""

    depth: int
    """Number of blocks of the base."""
    new_layers: int | None = None
    """Number of new blocks."""
    placement: Placement | None = None
    """Strategy or explicit list."""
    per_gap: int = 1
    """How many new blocks a gap may take."""
    scores: Callable[[], Sequence[float]] | None = None
    """Scores every gap, or the block below every gap; only placements by measurement ask."""
    options: Any = None
    """The method's own options; only methods whose options say where blocks go ask."""
    rule: Rule | None = None
    """Says what blocks are in a deeper stack; only ``periods`` asks."""
    auto: bool = False
    """As many new blocks as gaps stand out by their scores; see ``stands_out``."""


def parse(text: str) -> Placement:
    """Read a placement as it is written on the command line.

    Raises:
        DeepenError: The name is unknown, or what stands after ``after:`` or ``spread:`` is no list
            of integers, or no region.
    """
    name, _, rest = text.partition(":")
    if name == SPREAD:
        return Placement(SPREAD, region=span(rest, f"Placement {text[:80]!r}"))
    if name == "after":
        try:
            return Placement("after", tuple(sorted(int(part) for part in rest.split(","))))
        except ValueError:
            raise DeepenError(
                f"Placement {text[:80]!r} is not a list of blocks; write for example after:3,4,5."
            ) from None
    if text not in (*NAMES, PERIODS):
        raise unknown("placement", text, [*NAMES, PERIODS, "spread:4-12", "after:3,4,5"])
    return Placement(text)


def span(text: str, what: str) -> tuple[int, int]:
    """Read ``LO-HI``: two indices, the lower one first.

    Args:
        text: How it is written.
        what: What to call it in an error.

    Raises:
        DeepenError: It is not of that form, or reversed.
    """
    try:
        low, high = (int(part) for part in text.split("-"))
    except ValueError:
        raise DeepenError(f"{what} is not of the form LO-HI; write for example 4-12.") from None
    if low > high:
        raise DeepenError(f"{what} is reversed; write {high}-{low}.")
    return low, high


def in_gaps(request: PlacementRequest, default: str, *, copies: bool) -> Plan:
    """Plan one new block for each gap that is chosen.

    Args:
        request: What the user wants; by default half as many new blocks as the base has, or as
            many as ``after`` lists.
        default: Name of the placement where the user names none.
        copies: Whether new blocks are copies of the block below, which can also stand on top of
            all, instead of made from the two blocks around a gap.

    Raises:
        DeepenError: The placement does not hold that many new blocks.
    """
    depth, per_gap, placement = request.depth, request.per_gap, request.placement
    if per_gap < 1:
        raise DeepenError(f"A gap must take at least 1 new block, not {per_gap}.")
    listed = len(placement.after) if placement else 0
    _check_depth(depth, max(request.new_layers or 0, per_gap, listed))
    placement = placement or Placement(default)
    slots = depth if copies else depth - 1
    if placement.name == "after":
        gaps = _listed(placement, depth, request.new_layers, slots)
        return insert_after(depth, gaps, copies=copies)
    if placement.name == PERIODS:
        gaps = spread_periods(depth, request.new_layers, request.rule, copies=copies)
        return insert_after(depth, gaps, copies=copies)
    wanted = max(1, depth // 2) if request.new_layers is None else request.new_layers
    if wanted < 1:
        raise DeepenError(f"There must be at least 1 new layer, not {wanted}.")
    if placement.name == SPREAD:
        low, high = placement.region
        _check_gaps(placement.region, depth, slots)
        order = list(range(low, high + 1, 2))
        wanted = len(order) if request.new_layers is None else wanted
    elif placement.name in SCORED:
        order = _by_score(placement, slots, request)
        wanted = len(order) if request.auto else wanted
    else:
        order = _preferred(placement.name, depth, slots, wanted)
    if wanted > len(order) * per_gap:
        raise DeepenError(
            f"Placement {placement.name!r} of {depth} blocks holds {len(order) * per_gap} new "
            f"layers at {per_gap} per gap, not {wanted}; ask for fewer, choose another placement, "
            f"or pass --per-gap {-(-wanted // max(1, len(order)))}."
            if order
            else f"A base of {depth} block has no gap between two blocks to grow in."
        )
    # Full rounds over all gaps, then the remainder in the gaps that the strategy prefers.
    return insert_after(depth, (order[i % len(order)] for i in range(wanted)), copies=copies)


def _check_depth(depth: int, new: int) -> None:
    """Refuse a stack that no machine holds, before it is planned."""
    if depth + new > MOST_BLOCKS:
        raise DeepenError(
            f"A grown model has at most {MOST_BLOCKS:,} blocks, and the base has {depth} of them; "
            f"ask for fewer new ones."
        )


def _by_score(placement: Placement, slots: int, request: PlacementRequest) -> list[int]:
    """List as many gaps as half of the blocks, or those that stand out, the preferred in front."""
    if request.scores is None:
        raise DeepenError(
            f"Placement {placement.name!r} needs the base's weights; name another one here."
        )
    sign = SCORED[placement.name]
    scored = [sign * score for score in request.scores()[:slots]]
    order = sorted(range(len(scored)), key=lambda gap: (scored[gap], -gap))
    order = order[: max(1, request.depth // 2)]
    return [gap for gap in order if stands_out(scored[gap], scored)] if request.auto else order


def stands_out(score: float, scores: Sequence[float]) -> bool:
    """Whether a score, the less the better, is nearer to the best of all than to their median.

    The median, because few blocks at the ends of a stack have scores of another size.
    """
    return 2 * score <= min(scores) + median(scores)


def _listed(placement: Placement, depth: int, new_layers: int | None, slots: int) -> list[int]:
    """Check an explicit list of gaps."""
    _check_gaps(placement.after, depth, slots)
    if new_layers not in (None, len(placement.after)):
        raise DeepenError(
            f"Placement '{placement}' holds {len(placement.after)} new layers, not {new_layers}; "
            f"leave out --new-layers, or name a block twice for two new layers above it."
        )
    return list(placement.after)


def _check_gaps(gaps: Iterable[int], depth: int, slots: int) -> None:
    """Refuse gaps that are not there; gap -1 lies below block 0, and takes copies of it.

    Args:
        gaps: What was asked for.
        depth: Number of blocks of the base.
        slots: Number of gaps above blocks; as many as blocks if new blocks are copies.
    """
    for gap in gaps:
        if gap in (-1, depth - 1) and slots < depth:
            end, side = ("first", "below") if gap < 0 else ("last", "above")
            raise DeepenError(
                f"Block {max(gap, 0)} is the {end} one: there is no block {side} it to fuse with; "
                f"only methods that copy can insert there."
            )
        if not -1 <= gap < slots:
            raise DeepenError(f"The base has blocks 0 to {depth - 1}; there is no block {gap}.")


def _preferred(name: str, depth: int, slots: int, wanted: int) -> list[int]:
    """List a strategy's gaps, those it fills first in front."""
    inner = depth - 1
    half = min(inner, max(1, depth // 2))
    if name == "top":
        return list(range(inner - 1, inner - 1 - half, -1))
    if name == "bottom":
        return list(range(half))
    if name == "middle":
        # Outwards from the centre of the inner gaps, the upper one of two equals first.
        centre = (inner - 1) / 2
        return sorted(range(inner), key=lambda gap: (abs(gap - centre), -gap))[:half]
    if name == "top-bottom":
        # From both ends inwards in turn, the top first.
        ends = [gap for i in range(inner) for gap in (inner - 1 - i, i)]
        return list(dict.fromkeys(ends))[:half]
    # uniform: the gaps form as many equal groups as there are new blocks; the last of each group.
    groups = min(wanted, slots)
    return [(k + 1) * slots // groups - 1 for k in range(groups)] if groups else []


def overlapping_runs(request: PlacementRequest) -> Plan:
    """Plan two overlapping runs of the base: blocks 0..L-d-1, then d..L-1.

    Of each block that appears twice the first appearance counts as kept and the second as new.
    Without ``new_layers``, N is half of L, or one less where d = (L - N) / 2 would not be whole.
    SOLAR, arXiv 2312.15166, section 2.

    Raises:
        DeepenError: d would not be whole or not lie in the base, or a placement was asked for.
    """
    depth = request.depth
    if request.placement is not None or request.per_gap != 1:
        raise DeepenError("SOLAR places blocks by its own rule; leave out the placement.")
    new = request.new_layers
    if new is not None and not 1 <= new <= depth:
        raise DeepenError(f"SOLAR adds 1 to {depth} layers to {depth} blocks, not {new}.")
    if new is not None and (depth - new) % 2:
        near = new - 1 if new > 1 else new + 1
        raise DeepenError(
            f"SOLAR cuts d = (L - N) / 2 blocks from each copy, which is not whole for "
            f"L = {depth}, N = {new}; ask for {near} new layers."
        )
    return repeated(depth, [middle(depth, new)], 1)


def middle(depth: int, new_layers: int | None, times: int = 1) -> tuple[int, int]:
    """Return the span in the middle that makes so many new layers when it is repeated.

    Args:
        depth: Number of blocks of the base.
        new_layers: Number of new blocks; by default half of the base's, or fewer where no such span
            has as many blocks below it as above.
        times: How often the span is repeated.

    Returns:
        Its first and its last block; the upper one of two spans that are as near to the middle.

    Raises:
        DeepenError: There is no such span.
    """
    if new_layers is None:
        length = max(1, depth // 2 // times)
        new_layers = times * (length - (depth - length) % 2 or 2)
    length, rest = divmod(new_layers, times)
    if rest or not 1 <= length <= depth:
        raise DeepenError(
            f"No span of {depth} blocks makes {new_layers} new layers at times={times}; ask for a "
            f"multiple of {times} up to {times * depth}."
        )
    low = (depth - length + 1) // 2
    return low, low + length - 1


def repeated(
    depth: int, spans: Sequence[tuple[int, int]], times: int, *, interleaved: bool = False
) -> Plan:
    """Plan spans of blocks that are repeated.

    Args:
        depth: Number of blocks of the base.
        spans: First and last block of each, in order.
        times: How often each is repeated.
        interleaved: Whether copies of a block stand right above it, instead of a copy of the span
            above the span.

    Raises:
        DeepenError: A span lies outside the base or over another one.
    """
    for (_, high), (low, _) in pairwise([(-1, -1), *spans]):
        if low <= high:
            raise DeepenError(
                f"Block {low} lies in two of the spans, and would stand among its own copies; name "
                f"spans that do not overlap."
            )
    low, high = spans[0][0], spans[-1][1]
    if not 0 <= low <= high < depth:
        raise DeepenError(
            f"The base has blocks 0 to {depth - 1}, and the span {low}-{high} reaches beyond them."
        )
    _check_depth(depth, times * sum(high - low + 1 for low, high in spans))
    if interleaved:
        spans = [(i, i) for low, high in spans for i in range(low, high + 1)]
    last = {high: low for low, high in spans}
    blocks: list[Keep | Insert] = []
    for index in range(depth):
        blocks.append(Keep(index))
        if index in last:
            blocks += [Insert(i, i, 0.0) for i in range(last[index], index + 1)] * times
    return Plan(depth, tuple(blocks))
