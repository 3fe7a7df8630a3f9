"""Learned against forgotten: what training won on new text and tasks, and what it cost on old.

*Learned* is the loss on new text before training minus that after it, *forgotten* the loss on old
text after training minus that before, both in nats per token; for tasks likewise, in shares of
their metric. Before training is what the **base** scored: a grown model that starts worse than the
base has that held against it.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeVar

from deepen.comparison.statistics import (
    SHARES,
    Score,
    drawable,
    interval,
    main_metrics,
    mean_of,
    reference,
    scores,
)
from deepen.records.evaluation import EvalRecord, Side
from deepen.records.study import ArmRecord, PairedDifference

Kind = Literal["text", "task"]
RunT = TypeVar("RunT", bound=Hashable)
Values = Mapping[tuple[str, int], Mapping[str, float]]
"""(Arm, seed) → name of a score, or of what was learned or forgotten → value."""

SIDES: tuple[Side, ...] = ("new", "old")
"""Learned, forgotten."""
KINDS: tuple[Kind, ...] = ("text", "task")
"""Texts come first."""

_ROLES = ("reference", "alternative", "grown")


@dataclass(frozen=True)
class Change:
    """What one run learned or forgot."""

    side: Side
    """New is learned, old is forgotten."""
    kind: Kind
    """In nats per token of a text, or in a task's metric."""
    subject: str | None
    """The text or task; ``None`` for the mean of all of that side and kind."""
    value: float
    """How much."""

    @property
    def name(self) -> str:
        """Its name in ``PairedDifference``: ``learned``, ``forgotten of piqa``."""
        return name(self.side, self.kind, self.subject)


def name(side: Side, kind: Kind, subject: str | None = None) -> str:
    """Name what was learned or forgotten; without a subject, the mean over all of that kind."""
    verb = "learned" if side == "new" else "forgotten"
    if subject is None:
        return verb if kind == "text" else f"{verb} in tasks"
    return f"{verb} {'on' if kind == 'text' else 'of'} {subject}"


def before_training(records: Sequence[ArmRecord], seed: int) -> EvalRecord | None:
    """Return what the base scored before training; ``None`` if no record tells yet.

    The reference begins as the base, and so do the alternatives and the grown models that keep its
    function. The reference's own record is preferred, then that of the seed.
    """
    begun = [r for r in records if r.grow is None or r.grow.step.preserves_function]
    ranked = sorted(begun, key=lambda r: (_ROLES.index(r.role), r.seed != seed))
    return ranked[0].before if ranked else None


def changes(record: ArmRecord, before: EvalRecord) -> list[Change]:
    """Return what a run learned and forgot, one by one, and the means of each side and kind.

    Args:
        record: The run.
        before: What the base scored before training.
    """
    start = {score.name: score for score in sided_scores(before)}
    found = [
        Change(score.side, score.kind, score.subject, _change(start[score.name], score))
        for score in sided_scores(record.after)
        if score.side is not None and score.name in start
    ]
    shares = {score.subject for score in sided_scores(record.after) if score.metric in SHARES}
    means = []
    for side in SIDES:
        for kind in KINDS:
            values = [
                change.value
                for change in found
                if (change.side, change.kind) == (side, kind)
                and (kind == "text" or change.subject in shares)
            ]
            if values:
                means.append(Change(side, kind, None, mean_of(values)))
    return [*means, *found]


def sided_scores(evaluation: EvalRecord) -> list[Score]:
    """List the scores that have a side: the loss on each text, one metric of each task."""
    texts = [s for s in scores(evaluation) if s.metric == "loss_nats_per_token"]
    return [score for score in [*texts, *main_metrics(evaluation)] if score.side is not None]


def losses(evaluation: EvalRecord, side: Side) -> list[float]:
    """Return the losses on all texts of one side, in nats per token."""
    return [text.loss_nats_per_token for text in evaluation.texts if text.side == side]


def _change(before: Score, after: Score) -> float:
    """Return how much better a new score became, or how much worse an old one."""
    gain = after.value - before.value if after.higher_is_better else before.value - after.value
    return gain if after.side == "new" else -gain


def all_changes(records: Sequence[ArmRecord]) -> dict[tuple[str, int], dict[str, float]]:
    """Return what every run learned and forgot, by name; nothing where no score has a side."""
    starts = {seed: before_training(records, seed) for seed in {r.seed for r in records}}
    return {
        (record.arm, record.seed): {change.name: change.value for change in changes(record, start)}
        for record in records
        if (start := starts[record.seed]) is not None
    }


def kinds(records: Sequence[ArmRecord]) -> list[Kind]:
    """Return of which kinds both learning and forgetting were measured: texts before tasks."""
    known = {measure for of_run in all_changes(records).values() for measure in of_run}
    return [kind for kind in KINDS if {name("new", kind), name("old", kind)} <= known]


def front(records: Sequence[ArmRecord], arms: Sequence[str], kind: Kind | None = None) -> list[str]:
    """Return the arms that no other beats on both sides.

    One beats another if it learns as much or more and forgets as little or less, by the means over
    seeds, and is not its equal.

    Args:
        records: Lines of records.jsonl.
        arms: Labels in the order of the study.
        kind: Texts or tasks; by default texts, where they have both sides, else tasks.
    """
    found = kinds(records)
    kind = kind or (found[0] if found else None)
    if kind not in found or kind is None:
        return []
    gained = all_changes(records)
    means = {arm: _means(gained, arm, kind) for arm in arms}
    points = {arm: point for arm, point in means.items() if point is not None}
    return [
        arm for arm, point in points.items() if not any(_beats(p, point) for p in points.values())
    ]


def _means(gained: Values, arm: str, kind: Kind) -> tuple[float, float] | None:
    """Return how much an arm learned and forgot, mean over seeds; ``None`` if one is no number."""
    wanted = name("new", kind), name("old", kind)
    runs = [
        tuple(of_run[measure] for measure in wanted)
        for (label, _), of_run in gained.items()
        if label == arm and all(measure in of_run for measure in wanted)
    ]
    if not runs:
        return None
    learned, forgotten = (mean_of(values) for values in zip(*runs, strict=True))
    return (learned, forgotten) if drawable(learned) and drawable(forgotten) else None


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one beats another; each is what was learned and what was forgotten."""
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def clearly_beaten(
    differences: Iterable[PairedDifference], arms: Sequence[str], kind: Kind
) -> dict[str, list[str]]:
    """Return the arms that others beat with intervals clear of zero on both sides.

    Args:
        differences: All of the study.
        arms: Labels in the order of the study.
        kind: Texts or tasks.

    Returns:
        Label → the arms that learn more and forget less, in the order of the study.
    """
    signs: dict[tuple[str, str], dict[str, int]] = {}
    for d in differences:
        sign = 0 if d.low is None or d.high is None else (d.low > 0) - (d.high < 0)
        signs.setdefault((d.arm, d.other), {})[d.score] = sign
        signs.setdefault((d.other, d.arm), {})[d.score] = -sign
    wanted = {name("new", kind): 1, name("old", kind): -1}
    beaten = {
        arm: [one for one in arms if wanted.items() <= signs.get((one, arm), {}).items()]
        for arm in arms
    }
    return {arm: by for arm, by in beaten.items() if by}


def paired(
    values: Mapping[tuple[str, RunT], Mapping[str, float]], pairs: Iterable[tuple[str, str]]
) -> list[PairedDifference]:
    """Compare pairs of arms in everything that both have, over the seeds that both have.

    Args:
        values: (Arm, seed, or whatever tells runs apart) → name of a score → value.
        pairs: The arm, and the one that is subtracted.
    """
    differences = []
    for arm, other in pairs:
        seeds = [s for a, s in values if a == arm and (other, s) in values]
        runs = [(values[arm, seed], values[other, seed]) for seed in seeds]
        for score in runs[0][0] if runs else ():
            if not all(score in ours and score in theirs for ours, theirs in runs):
                continue
            mean, low, high = interval([ours[score] - theirs[score] for ours, theirs in runs])
            differences.append(
                PairedDifference(
                    arm=arm,
                    other=other,
                    score=score,
                    seeds=len(seeds),
                    mean=mean,
                    low=low,
                    high=high,
                )
            )
    return differences


def values(records: Sequence[ArmRecord]) -> dict[tuple[str, int], dict[str, float]]:
    """Return every score of every run after training, and what it learned and forgot."""
    gained = all_changes(records)
    return {
        (record.arm, record.seed): {score.name: score.value for score in scores(record.after)}
        | gained.get((record.arm, record.seed), {})
        for record in records
    }


def all_pairs(records: Sequence[ArmRecord], arms: Sequence[str]) -> list[tuple[str, str]]:
    """Pair every arm with the reference, and then every arm with every later one."""
    base = reference(records)
    others = [arm for arm in arms if arm != base]
    return [(arm, base) for arm in others if base is not None] + list(combinations(others, 2))


def paired_differences(records: Sequence[ArmRecord], arms: Sequence[str]) -> list[PairedDifference]:
    """Compare every arm with the reference, and every arm with every later one, in every score.

    What arms learned and forgot counts as a score. Only the seeds that both arms have count.

    Args:
        records: Lines of records.jsonl.
        arms: Labels in the order of the study.
    """
    return paired(values(records), all_pairs(records, arms))
