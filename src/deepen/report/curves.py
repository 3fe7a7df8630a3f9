"""Curves as geometry: what the template draws, in per cent of the picture's size.

Places in per cent let a picture fill any width while its text keeps its size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deepen.comparison import statistics as aggregate
from deepen.comparison.statistics import CurvePoint
from deepen.records.study import ArmRecord
from deepen.report import text
from deepen.report.scale import Scale, Tick, around

_CANVAS = 1000
"""Curves are drawn on a square of that size, stretched to the plot."""
_SKIPPED_SHARE = 0.1
"""First share of a curve that may leave the picture at the top, so that the rest can be seen."""


@dataclass(frozen=True)
class Line:
    """One arm's curve."""

    arm: int
    """Index of the arm, which decides colour, dash and marker."""
    label: str
    """The arm."""
    path: str
    """Mean over seeds, as an SVG path on the canvas."""
    band: str
    """Lowest to highest seed, as a closed SVG path; empty with one seed."""
    end: tuple[float, float]
    """Where the curve ends, in per cent."""


@dataclass(frozen=True)
class Chart:
    """Curves of all arms over one axis."""

    title: str
    """What is drawn against what."""
    x_title: str
    """Quantity and unit of the horizontal axis."""
    y_title: str
    """Quantity and unit of the vertical axis."""
    x_ticks: list[Tick]
    """Along the bottom."""
    y_ticks: list[Tick]
    """Along the left."""
    lines: list[Line]
    """One for each arm that has a curve."""
    cut: list[str]
    """Arms whose curve begins above the picture."""
    zero: float | None
    """Where the vertical axis is 0, if it is in the picture and means something."""


def loss_chart(
    records: Sequence[ArmRecord],
    arms: Sequence[str],
    x: Callable[[CurvePoint], float],
    title: str,
    x_title: str,
) -> Chart | None:
    """Draw the training loss of all arms.

    Args:
        records: Lines of records.jsonl.
        arms: Labels in order.
        x: The horizontal quantity.
        title: What is drawn against what.
        x_title: Quantity and unit of the horizontal axis.
    """
    curves = {arm: aggregate.loss_curve(aggregate.of_arm(records, arm)) for arm in arms}
    return _chart(curves, arms, x, title, x_title, "training loss, nats per token", zero=False)


def difference_chart(records: Sequence[ArmRecord], arms: Sequence[str]) -> Chart | None:
    """Draw the training loss of every arm minus the reference's on the same tokens."""
    base = aggregate.reference(records)
    theirs = [record for record in records if record.arm == base]
    curves = {
        arm: aggregate.loss_against(aggregate.of_arm(records, arm), theirs)
        for arm in arms
        if arm != base
    }
    title = f"Loss against tokens, minus that of “{base}” on the same tokens"
    y_title = "difference, nats per token"
    return _chart(curves, arms, lambda p: p.tokens, title, "tokens", y_title, zero=True)


def _chart(
    curves: Mapping[str, list[CurvePoint]],
    arms: Sequence[str],
    x: Callable[[CurvePoint], float],
    title: str,
    x_title: str,
    y_title: str,
    *,
    zero: bool,
) -> Chart | None:
    """Lay out curves; ``None`` if there are none."""
    curves = {arm: aggregate.thinned(curve) for arm, curve in curves.items() if curve}
    if not curves:
        return None
    right = max(x(curve[-1]) for curve in curves.values())
    across = Scale(0.0, right * 1.02 or 1.0, 0.0, 100.0)
    settled = [
        end
        for curve in curves.values()
        for point in curve[min(len(curve) - 1, int(len(curve) * _SKIPPED_SHARE)) :]
        for end in (point.value.low, point.value.high)
    ]
    up = around([*settled, 0.0] if zero else settled, 100.0, 0.0)
    return Chart(
        title=title,
        x_title=x_title,
        y_title=y_title,
        x_ticks=[Tick(across(value), text.tick(value)) for value in across.ticks(5)],
        y_ticks=[Tick(up(value), text.tick(value)) for value in up.ticks(6)],
        lines=[_line(arms.index(a), a, curve, x, across, up) for a, curve in curves.items()],
        cut=[a for a, curve in curves.items() if any(p.value.mean > up.high for p in curve)],
        zero=up(0.0) if zero else None,
    )


def _line(
    index: int,
    arm: str,
    curve: Sequence[CurvePoint],
    x: Callable[[CurvePoint], float],
    across: Scale,
    up: Scale,
) -> Line:
    """Draw one curve and the band of its seeds."""
    last = curve[-1]
    return Line(
        arm=index,
        label=arm,
        path=_path([(across(x(p)), up(p.value.mean)) for p in curve]),
        band=_path(
            [(across(x(p)), up(p.value.high)) for p in curve]
            + [(across(x(p)), up(p.value.low)) for p in reversed(curve)],
            closed=True,
        )
        if last.value.seeds > 1
        else "",
        end=(across(x(last)), up(last.value.mean)),
    )


def _path(points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    """Write an SVG path through points given in per cent."""
    scale = _CANVAS / 100
    steps = [f"{px * scale:.1f} {py * scale:.1f}" for px, py in points]
    return "M" + "L".join(steps) + ("Z" if closed else "")
