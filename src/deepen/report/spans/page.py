"""What the page of a scan shows, gathered from its record."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deepen.records.scan import ScanRecord, SpanScore
from deepen.report import text
from deepen.report.scale import Tick, round_step
from deepen.report.tables import Cell, Table

LEVELS = (
    (-0.1, "b3", "lower by 0.1 or more"),
    (-0.03, "b2", "by 0.03 to 0.1"),
    (-0.01, "b1", "by 0.01 to 0.03"),
    (0.0, "b0", "by less than 0.01"),
    (0.03, "w0", "higher by less than 0.03"),
    (0.1, "w1", "by 0.03 to 0.1"),
    (0.3, "w2", "by 0.1 to 0.3"),
    (1.0, "w3", "by 0.3 to 1"),
    (math.inf, "w4", "by 1 or more"),
)
"""Shades of a heat map: up to which difference in nats per token, class, and name."""

_BEST = 8
_TICKS = 8


@dataclass(frozen=True)
class Square:
    """One span in a heat map, in per cent of its width and height."""

    x: float
    """Left end: the last block."""
    y: float
    """Top end: the first block."""
    shade: str
    """Class of its colour."""
    title: str
    """Its numbers."""
    chosen: bool
    """Whether it is the span that was chosen."""


@dataclass(frozen=True)
class Heat:
    """What repeating every span does to the loss on one half of the text."""

    title: str
    """Which half."""
    size: float
    """Width and height of a square, in per cent."""
    squares: list[Square]
    """One for each span, the chosen one last, so that its frame lies over the others."""
    ticks: list[Tick]
    """Numbers of blocks, along both sides."""


def context(record: ScanRecord) -> dict[str, Any]:
    """Gather what the templates show."""
    halves: list[tuple[str, Callable[[SpanScore], float]]] = [
        ("the half that chooses", lambda span: span.choosing),
        ("the half that confirms", lambda span: span.confirming),
    ]
    return {
        "title": f"Which span of {record.base.name} to repeat on {record.text}",
        "facts": facts_of(record),
        "record": record,
        "verdicts": {"helps": "helps", "unproven": "not shown to help", "none": "none helps"},
        "maps": [_heat(record, title, of) for title, of in halves],
        "levels": [(shade, name) for _, shade, name in LEVELS],
        "tables": best_table(record),
        "every": _every(record),
        "software": sorted(record.versions.items()),
    }


def facts_of(record: ScanRecord) -> list[tuple[str, str]]:
    """List what was scanned, and on what."""
    request, sequences = record.request, len(record.base_losses)
    often = "once" if request.times == 1 else f"{request.times} times"
    grid = f"{len(record.spans):,} of up to {request.longest} blocks"
    grid += f", at multiples of {request.stride}" if request.stride > 1 else ""
    left_out = (
        [("left out", f"{record.left_out:,}: {record.left_out_because}")] if record.left_out else []
    )
    return [
        ("base", f"{record.base.name} ({record.base.fingerprint[:12]}), {record.depth} blocks"),
        ("text", f"{record.text} (SHA-256 {record.text_sha256[:12]})"),
        ("read", f"{record.tokens:,} tokens predicted in {sequences} sequences"),
        ("loss of the base", f"{text.fixed(_mean(record.base_losses), 4)} nats per token"),
        ("spans", f"{grid}, repeated {often}"),
        *left_out,
        ("cost", f"{record.block_runs:,} blocks run, {record.passes:.1f} passes of the base"),
    ]


def _mean(losses: list[float]) -> float:
    """Return the mean of the base's losses, which are finite unless a record is damaged."""
    return sum(losses) / len(losses)


def best_table(record: ScanRecord) -> list[Table]:
    """Write the best spans, and tasks if some were asked for."""
    ordered = sorted(record.spans, key=lambda span: (not span.choosing < math.inf, span.choosing))
    rows = [(f"{span.first}-{span.last}", _cells(span)) for span in ordered[:_BEST]]
    tables = [Table("The best spans by the half that chooses", _HEADER, rows)]
    if record.tasks:
        tasks = [
            (
                f"{one.first}-{one.last}",
                [
                    Cell(one.task),
                    Cell(text.metric(one.metric)),
                    Cell(text.score(one.metric, one.base)),
                    Cell(text.score(one.metric, one.value)),
                    Cell(_task_difference(one.metric, one.value - one.base, one.low, one.high)),
                    Cell(f"{one.examples:,}"),
                ],
            )
            for one in record.tasks
        ]
        header = ["span", "task", "metric", "base", "repeated", "difference", "examples"]
        tables.append(Table("Tasks, which chose nothing", header, tasks))
    return tables


_HEADER = ["span", "blocks", "choosing half", "chance of luck", "confirming half"]


def _cells(span: SpanScore) -> list[Cell]:
    """Write a span's numbers."""
    return [
        Cell(str(span.last - span.first + 1)),
        Cell(_difference(span.choosing)),
        Cell(f"{span.chance:.2g}"),
        Cell(_difference(span.confirming)),
    ]


def _difference(value: float) -> str:
    """Write a difference of losses."""
    return text.difference("loss_nats_per_token", value)


def _task_difference(metric: str, mean: float, low: float | None, high: float | None) -> str:
    """Write a difference of a task's metric with its interval."""
    return f"{text.difference(metric, mean)} {text.interval(metric, low, high)}".rstrip()


def _every(record: ScanRecord) -> Table:
    """Write all spans."""
    rows = [(f"{span.first}-{span.last}", _cells(span)) for span in record.spans]
    return Table("Every span, from bottom to top", _HEADER, rows)


def _heat(record: ScanRecord, title: str, of: Callable[[SpanScore], float]) -> Heat:
    """Draw one half's differences."""
    size, choice = 100 / record.depth, (record.choice.first, record.choice.last)
    stride = record.request.stride
    squares = [
        Square(
            x=(span.last - stride + 1) * size,
            y=span.first * size,
            shade=_shade(of(span)),
            title=(
                f"{span.first}-{span.last}: {_difference(span.choosing)} choosing, "
                f"{_difference(span.confirming)} confirming"
            ),
            chosen=(span.first, span.last) == choice,
        )
        for span in record.spans
    ]
    return Heat(
        title=title,
        size=size * stride,
        squares=sorted(squares, key=lambda square: square.chosen),
        ticks=list(_ticks(record.depth, size)),
    )


def _ticks(depth: int, size: float) -> Iterator[Tick]:
    """Number blocks along a side."""
    step = max(1, math.ceil(round_step(depth, _TICKS)))
    for block in range(0, depth, step):
        yield Tick((block + 0.5) * size, str(block))


def _shade(difference: float) -> str:
    """Return the class of a difference's colour; what is no number is as bad as can be."""
    return next((shade for end, shade, _ in LEVELS if difference < end), LEVELS[-1][1])
