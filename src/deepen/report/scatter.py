"""Learned against forgotten as geometry: points, crosses, the front, and labels that fit.

Unlike curves this picture has a size of its own, in its own units, because labels can only be kept
apart where it is known how wide they are. There are two: one for wide screens, whose points have
their labels, and one for narrow ones, whose points have numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepen.records.study import Role
from deepen.report import text
from deepen.report.scale import Scale, Tick, around

Span = tuple[float, float | None, float | None]
"""Mean, and the ends of its interval."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_LETTER, _LINE = 8.4, 15.0
"""Width of a letter and height of a line at the labels' size of 13, in a wide typeface."""
_SLIM, _BROAD = frozenset(" .,:;!|'()[]-ijlftrI"), frozenset("mwMW@%=+…")
"""Letters that take about two thirds of that, and those that take half as much again."""
_LONGEST = 38
"""Letters of a label; what is longer is cut in the middle."""
_MARK = 7.0
"""Half of a mark's width, with some room."""
_FEWEST = 2
"""Arms that a picture needs."""
_FAR = 0.4
"""An arm off the front is left out of the picture if the rest then takes up less than this share
of the axis."""


@dataclass(frozen=True)
class Arm:
    """What is drawn of an arm."""

    index: int
    """Its index."""
    label: str
    """Its name."""
    role: Role
    """What it is in the study; decides colour and shape."""
    learned: Span
    """How much it learned."""
    forgotten: Span
    """How much it forgot."""
    on_front: bool
    """Whether no other arm beats it."""
    written: str
    """Both in words."""


@dataclass(frozen=True)
class Point:
    """An arm in the picture."""

    arm: Arm
    """The arm."""
    x: float
    """Place of the mean."""
    y: float
    """Place of the mean."""
    across: tuple[float, float] | None
    """Interval of what was forgotten, cut at the picture's edge."""
    up: tuple[float, float] | None
    """Interval of what was learned."""
    shown: str = ""
    """The label, as it fits."""
    place: tuple[float, float] | None = None
    """Where the label begins, at its base line; ``None`` if it fits nowhere."""
    leader: tuple[float, float] | None = None
    """Where a line from the mark to a label that is not beside it ends."""


@dataclass(frozen=True)
class Picture:
    """One size of the picture."""

    name: str
    """``roomy`` or ``narrow``."""
    width: float
    """Of the whole."""
    height: float
    """Of the whole."""
    plot: Box
    """Where points are."""
    x_ticks: list[Tick]
    """Along the bottom."""
    y_ticks: list[Tick]
    """Along the left."""
    x_zero: float | None
    """Where nothing is forgotten, if that is in the picture."""
    y_zero: float | None
    """Where nothing is learned, if that is in the picture."""
    front: str
    """The front, as an SVG path in steps: what lies below it and to its right is beaten."""
    points: list[Point]
    """The arms."""


@dataclass(frozen=True)
class Scatter:
    """What arms learned against what they forgot."""

    title: str
    """What is drawn."""
    x_title: str
    """Quantity and unit of the horizontal axis."""
    y_title: str
    """Quantity and unit of the vertical axis."""
    pictures: list[Picture]
    """For wide screens and for narrow ones."""
    outside: list[str]
    """Arms that lie far outside of the picture, with their numbers."""


def scatter(arms: Sequence[Arm], what: str, unit: str, factor: float = 1.0) -> Scatter | None:
    """Draw what arms learned, upwards, against what they forgot, to the right.

    Args:
        arms: The arms that have both; fewer than two are no picture.
        what: What it was measured on.
        unit: Of both axes.
        factor: What numbers are multiplied with to be in this unit.
    """
    if len(arms) < _FEWEST:
        return None
    inside = _inside(arms)
    numbers = {arm.index: str(place) for place, arm in enumerate(inside, 1)}
    roomy = _picture("roomy", inside, (900.0, 440.0), {}, factor)
    narrow = _picture("narrow", inside, (360.0, 360.0), numbers, factor)
    return Scatter(
        title=f"Learned from new {what}, against forgotten of old {what}",
        x_title=f"forgotten, {unit}",
        y_title=f"learned, {unit}",
        pictures=[roomy, narrow],
        outside=[f"{arm.label} ({arm.written})" for arm in arms if arm not in inside],
    )


def _inside(arms: Sequence[Arm]) -> list[Arm]:
    """Leave out arms off the front that would squeeze all others together."""
    inside = list(arms)
    while True:
        far = next((arm for arm in inside if not arm.on_front and _squeezes(arm, inside)), None)
        if far is None:
            return inside
        inside.remove(far)


def _squeezes(arm: Arm, arms: Sequence[Arm]) -> bool:
    """Whether the other arms take up little of an axis because of this one."""
    rest = [one for one in arms if one is not arm]
    axes = ([(one.learned[0], one.forgotten[0]) for one in group] for group in (arms, rest))
    whole, without = ([max(v) - min(v) for v in zip(*points, strict=True)] for points in axes)
    return len(rest) > 1 and any(0 < w < _FAR * a for a, w in zip(whole, without, strict=True))


def _scale(spans: Sequence[Span], start: float, end: float) -> Scale:
    """Make an axis that holds all means, and intervals unless they are much wider than that."""
    means = [mean for mean, _, _ in spans]
    room = max(means) - min(means) or max(map(abs, means)) or 1.0
    ends = [end for _, low, high in spans for end in (low, high) if end is not None]
    low, high = min([*means, *ends]), max([*means, *ends])
    held = [max(low, min(means) - room / 2), min(high, max(means) + room / 2)]
    return around([*means, *held], start, end, margin=0.09)


def _picture(
    name: str,
    arms: Sequence[Arm],
    size: tuple[float, float],
    numbers: dict[int, str],
    factor: float,
) -> Picture:
    """Lay the picture out in one size."""
    width, height = size
    plot = left, top, right, bottom = (52.0, 8.0, width - 10.0, height - 26.0)
    across = _scale([arm.forgotten for arm in arms], left, right)
    up = _scale([arm.learned for arm in arms], bottom, top)
    points = [
        Point(
            arm=arm,
            x=across(arm.forgotten[0]),
            y=up(arm.learned[0]),
            across=_ends(arm.forgotten, across, left, right),
            up=_ends(arm.learned, up, top, bottom),
            shown=numbers.get(arm.index) or _short(arm.label),
        )
        for arm in arms
    ]
    shown = [Scale(s.low * factor, s.high * factor, s.start, s.end) for s in (across, up)]
    ticks = [
        [Tick(scale(value), text.tick(value)) for value in scale.ticks(wanted)]
        for scale, wanted in zip(shown, (max(3, int(width / 110)), 6), strict=True)
    ]
    return Picture(
        name=name,
        width=width,
        height=height,
        plot=plot,
        x_ticks=ticks[0],
        y_ticks=ticks[1],
        x_zero=across(0.0) if across.low <= 0 <= across.high else None,
        y_zero=up(0.0) if up.low <= 0 <= up.high else None,
        front=_front(points, plot),
        points=_labelled(points, plot),
    )


def _ends(span: Span, scale: Scale, least: float, most: float) -> tuple[float, float] | None:
    """Return the places of an interval's ends, inside the picture."""
    _, low, high = span
    if low is None or high is None:
        return None
    first, last = sorted((scale(low), scale(high)))
    return max(first, least), min(last, most)


def _front(points: Sequence[Point], plot: Box) -> str:
    """Draw the front from below its left end, in steps, to the right of its right end."""
    corners = _corners(points)
    if not corners:
        return ""
    path = f"M{corners[0][0]:.1f} {plot[3]:.1f}"
    for x, y in corners:
        path += f"H{x:.1f}V{y:.1f}"
    return f"{path}H{plot[2]:.1f}"


def _corners(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the places of the arms on the front, from what forgets least on."""
    return sorted(((p.x, p.y) for p in points if p.arm.on_front), key=lambda c: (c[0], -c[1]))


def _steps(points: Sequence[Point]) -> list[Box]:
    """Return the level parts of the front between its arms, and on to the right, as boxes."""
    corners = _corners(points)
    ends = [x for x, _ in corners[1:]] + [math.inf]
    return [(x, y - 1, end, y + 1) for (x, y), end in zip(corners, ends, strict=False)]


def _short(label: str) -> str:
    """Cut a long label in the middle, where labels that begin alike still differ at the end."""
    if len(label) <= _LONGEST:
        return label
    half = (_LONGEST - 1) // 2
    return f"{label[:half].rstrip()}…{label[-half:].lstrip()}"


def _labelled(points: Sequence[Point], plot: Box) -> list[Point]:
    """Give every point a place for its label that no mark and no other label takes."""
    marks = [(p.x - _MARK, p.y - _MARK, p.x + _MARK, p.y + _MARK) for p in points]
    lines = [box for point in points for box in _cross(point)] + _steps(points)
    taken: list[Box] = []
    done: dict[int, Point] = {}
    for point in sorted(points, key=lambda p: _room(p, points)):
        places = [
            (cost, box)
            for far, box in _places(point, plot)
            if not any(_overlap(box, other) for other in (*marks, *taken))
            for cost in [far + 14.0 * sum(_overlap(box, line) for line in lines)]
        ]
        if not places:
            done[point.arm.index] = point
            continue
        _, box = min(places, key=lambda place: place[0])
        taken.append(box)
        done[point.arm.index] = _placed(point, box)
    return [done[point.arm.index] for point in points]


def _placed(point: Point, box: Box) -> Point:
    """Put a label into a box."""
    left, top, right, bottom = box
    end = min(max(point.x, left), right), min(max(point.y, top), bottom)
    apart = math.dist(end, (point.x, point.y)) > 2.2 * _MARK
    return replace(point, place=(left, bottom - 4.0), leader=end if apart else None)


def _room(point: Point, points: Sequence[Point]) -> float:
    """Return how far the nearest other point is: the most crowded choose first."""
    others = [p for p in points if p is not point]
    return min((math.dist((point.x, point.y), (p.x, p.y)) for p in others), default=math.inf)


def _cross(point: Point) -> list[Box]:
    """Return the two bars of a cross, as thin boxes."""
    bars: list[Box] = []
    if point.across:
        bars.append((point.across[0], point.y - 1, point.across[1], point.y + 1))
    if point.up:
        bars.append((point.x - 1, point.up[0], point.x + 1, point.up[1]))
    return bars


def _places(point: Point, plot: Box) -> list[tuple[float, Box]]:
    """List the boxes in the plot that a point's label might take, with how far away they are."""
    width, found = text_width(point.shown), []
    for distance in (9.0, 13.0, 19.0, 27.0, 38.0, 52.0, 70.0, 95.0, 130.0, 180.0, 250.0):
        for turn in range(16):
            angle = math.tau * turn / 16
            x, y = point.x + distance * math.cos(angle), point.y - distance * math.sin(angle)
            left = x - width * (1 - math.cos(angle)) / 2
            top = y - _LINE * (1 + math.sin(angle)) / 2
            box = (left, top, left + width, top + _LINE)
            if plot[0] < left and box[2] < plot[2] and plot[1] < top and box[3] < plot[3]:
                found.append((distance, box))
    return found


def text_width(label: str) -> float:
    """Return how wide a label is at most, in units of the picture."""
    letters = (2 / 3 if x in _SLIM else 3 / 2 if x in _BROAD else 1.0 for x in label)
    return 4.0 + _LETTER * sum(letters)


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share anything."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
