"""Intervals, stacks of blocks and bars as geometry, in per cent of the picture's width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepen.comparison import statistics as aggregate
from deepen.records.study import ArmRecord, PairedDifference
from deepen.report import text
from deepen.report.scale import Scale, Tick, around

_DOES: Mapping[str, str] = {"frozen": "frozen", "trained": "trained", "partly": "trained in part"}
"""Kind of a kept block → what it does in training."""


@dataclass(frozen=True)
class Strip:
    """One interval on an axis that several rows share."""

    arm: int
    """Index of the arm."""
    label: str
    """The arm."""
    mean: float
    """Place of the mean."""
    low: float | None
    """Place of the lower end; ``None`` without an interval."""
    high: float | None
    """Place of the upper end."""
    clear: bool
    """Whether the interval leaves out zero."""
    written: str
    """Mean and interval in words."""


@dataclass(frozen=True)
class Strips:
    """Differences of all arms to the reference in one score."""

    title: str
    """The score."""
    better: str
    """Which direction is better."""
    strips: list[Strip]
    """One for each arm."""
    ticks: list[Tick]
    """Along the bottom."""
    zero: float
    """Place of no difference."""


@dataclass(frozen=True)
class Segment:
    """One part of a bar."""

    kind: str
    """What it stands for; decides its colour."""
    start: float
    """Left end."""
    width: float
    """Width."""
    title: str
    """What it is, in words."""


@dataclass(frozen=True)
class Bar:
    """One arm's bar or stack of blocks."""

    arm: int
    """Index of the arm."""
    label: str
    """The arm."""
    segments: list[Segment]
    """From left to right."""
    written: str
    """What the bar says, in words."""


def strips(
    differences: Sequence[PairedDifference],
    arms: Sequence[str],
    base: str | None,
    score: aggregate.Score,
) -> Strips | None:
    """Draw the differences to the reference in one score.

    Args:
        differences: All of the study.
        arms: Labels in order.
        base: The label of the reference.
        score: The score.
    """
    chosen = [
        d
        for d in differences
        if d.other == base
        and d.score == score.name
        and d.arm in arms
        and all(end is None or aggregate.drawable(end) for end in (d.mean, d.low, d.high))
    ]
    if not chosen:
        return None
    ends = [end for d in chosen for end in (d.mean, d.low, d.high) if end is not None]
    across = around([*ends, 0.0], 0.0, 100.0, margin=0.08)
    factor = 100 if text.is_share(score.metric) else 1
    shown = Scale(across.low * factor, across.high * factor, 0.0, 100.0)
    return Strips(
        title=f"{score.subject}: {text.metric(score.metric)}",
        better="higher is better" if score.higher_is_better else "lower is better",
        strips=[
            Strip(
                arm=arms.index(d.arm),
                label=d.arm,
                mean=across(d.mean),
                low=None if d.low is None else across(d.low),
                high=None if d.high is None else across(d.high),
                clear=is_clear(d),
                written=written(d, score.metric),
            )
            for d in chosen
        ],
        ticks=[Tick(shown(value), text.tick(value)) for value in shown.ticks(4)],
        zero=across(0.0),
    )


def is_clear(difference: PairedDifference) -> bool:
    """Whether a difference's interval leaves out zero."""
    low, high = difference.low, difference.high
    return low is not None and high is not None and (low > 0 or high < 0)


def written(difference: PairedDifference, metric: str) -> str:
    """Write a difference and its interval."""
    interval = text.interval(metric, difference.low, difference.high)
    return f"{text.difference(metric, difference.mean)} {interval}".rstrip()


def stacks(records: Sequence[ArmRecord], arms: Sequence[str]) -> list[Bar]:
    """Draw the blocks of every arm: kept and frozen, kept and trained, new."""
    first = {arm: aggregate.of_arm(records, arm)[0] for arm in arms}
    depth = base_depth(records)
    plans = {a: r.grow.step.plan if r.grow else list(range(depth)) for a, r in first.items()}
    width = 100 / max(1, *(len(plan) for plan in plans.values()))
    bars = []
    for index, arm in enumerate(arms):
        trained = set(first[arm].train.trainable_blocks)
        new = [i for i, entry in enumerate(plans[arm]) if isinstance(entry, list)]
        kind = "partly" if is_partial(first[arm]) else "trained"
        bars.append(
            Bar(
                arm=index,
                label=arm,
                segments=[
                    _segment(i, entry, kind if i in trained else "frozen", width)
                    for i, entry in enumerate(plans[arm])
                ],
                written=f"{len(plans[arm])} blocks, "
                + (f"new: {text.blocks(new)}" if new else "none new"),
            )
        )
    return bars


def base_depth(records: Sequence[ArmRecord]) -> int:
    """Return how many blocks the base has, or of how many one is known to be trained."""
    depths = [record.grow.base_depth for record in records if record.grow]
    trained = [block + 1 for record in records for block in record.train.trainable_blocks]
    return depths[0] if depths else max(trained, default=0)


def is_partial(record: ArmRecord) -> bool:
    """Whether only a part of each trained block was: adapters, or single neurons."""
    training = aggregate.training_of(record.train)
    return bool(training.get("lora") or training.get("neurons"))


def _segment(index: int, entry: int | list[int | float], kind: str, width: float) -> Segment:
    """Draw one block."""
    if isinstance(entry, int):
        does = _DOES[kind]
        title = f"block {index}: the base's block {entry}, {does}"
    else:
        kind, (below, above, t) = "new", entry
        made = f"copy of {below:g}" if below == above else f"between {below:g} and {above:g}"
        title = f"block {index}: new, {made}" + (f" at t = {t:g}" if below != above else "")
    return Segment(kind=kind, start=index * width, width=width, title=title)


def times(records: Sequence[ArmRecord], arms: Sequence[str]) -> list[Bar]:
    """Draw where the time of an optimizer step goes."""
    seconds: dict[str, dict[str, float]] = {}
    for arm in arms:
        times = [record.train.step_time for record in aggregate.of_arm(records, arm)]
        parts = {
            part: aggregate.spread([getattr(time, f"{part}_seconds") for time in times]).mean
            for part in ("forward", "backward", "optimizer", "total")
        }
        named = parts["forward"] + parts["backward"] + parts["optimizer"]
        seconds[arm] = parts | {"other": max(0.0, parts["total"] - named)}
    longest = max(sum(parts.values()) - parts["total"] for parts in seconds.values())
    return [_time_bar(i, arm, seconds[arm], longest) for i, arm in enumerate(arms)]


def _time_bar(index: int, arm: str, parts: Mapping[str, float], longest: float) -> Bar:
    """Draw one arm's step."""
    segments, start = [], 0.0
    for kind in ("forward", "backward", "optimizer", "other"):
        width = 100 * parts[kind] / longest if longest else 0.0
        title = f"{kind}: {text.seconds(parts[kind])}"
        segments.append(Segment(kind=kind, start=start, width=width, title=title))
        start += width
    return Bar(arm=index, label=arm, segments=segments, written=text.seconds(parts["total"]))


def memory(records: Sequence[ArmRecord], arms: Sequence[str]) -> list[Bar]:
    """Draw the peak memory of training."""
    peaks = {
        arm: aggregate.spread([r.train.peak_bytes for r in aggregate.of_arm(records, arm)]).mean
        for arm in arms
    }
    highest = max(peaks.values()) or 1.0
    return [
        Bar(
            arm=index,
            label=arm,
            segments=[
                Segment(
                    kind="memory",
                    start=0.0,
                    width=100 * peaks[arm] / highest,
                    title=text.size(peaks[arm]),
                )
            ],
            written=text.size(peaks[arm]),
        )
        for index, arm in enumerate(arms)
    ]
