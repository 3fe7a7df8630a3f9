"""What a study's records say together: scores, means over seeds, intervals, curves, cost.

All statistics of a study are pure functions of records, here and in ``balance`` and ``pooling``;
the report only shows them.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deepen.records.evaluation import EvalRecord, Side
from deepen.records.study import ArmRecord
from deepen.records.training import LossPoint, TrainRecord

CONFIDENCE = 0.95
"""Of all intervals."""
SHARES = ("acc", "acc_norm", "exact_match", "f1")
"""Metrics of tasks that lie between 0 and 1, the more the better."""
_LARGEST = 1e100
_PREFERRED = ("acc", "acc_norm", "word_perplexity", "exact_match")
"""The metric that stands for a task: the first of these that it has."""


@dataclass(frozen=True)
class Score:
    """One number that a model got."""

    kind: Literal["text", "task"]
    """Whether it was measured on a text file or by a task."""
    subject: str
    """The file, or the task."""
    metric: str
    """What was measured."""
    value: float
    """What came out."""
    higher_is_better: bool
    """Direction."""
    side: Side | None = None
    """Whether it tells of what is new to the base or of what is old."""

    @property
    def name(self) -> str:
        """The score's name in ``PairedDifference``."""
        return f"{self.metric} {'on' if self.kind == 'text' else 'of'} {self.subject}"


@dataclass(frozen=True)
class Spread:
    """One number over the seeds of an arm."""

    mean: float
    """Mean over seeds."""
    low: float
    """Lowest of all seeds."""
    high: float
    """Highest of all seeds."""
    deviation: float | None
    """Standard deviation of a sample; ``None`` with one seed."""
    seeds: int
    """Number of seeds."""


@dataclass(frozen=True)
class CurvePoint:
    """One point of an arm's curve."""

    tokens: int
    """Tokens seen."""
    seconds: float
    """Training time, mean over seeds."""
    value: Spread
    """The quantity that is drawn."""


def scores(evaluation: EvalRecord) -> list[Score]:
    """List every number of an evaluation; the mean accuracy of its tasks, if several, is last."""
    scores = []
    for text in evaluation.texts:
        for metric in ("token_perplexity", "loss_nats_per_token", "bits_per_byte"):
            value = getattr(text, metric)
            scores.append(Score("text", text.file, metric, value, False, text.side))
    for task in evaluation.tasks:
        given = (task.task, task.metric, task.value, task.higher_is_better, task.side)
        scores.append(Score("task", *given))
    accuracies = [score.value for score in scores if score.kind == "task" and score.metric == "acc"]
    if len(accuracies) > 1:
        mean = mean_of(accuracies)
        scores.append(Score("task", f"{len(accuracies)} tasks", "mean acc", mean, True))
    return scores


def main_metrics(evaluation: EvalRecord) -> list[Score]:
    """Return one score of each task, the metric that stands for it."""
    tasks: dict[str, list[Score]] = {}
    for score in scores(evaluation):
        if score.kind == "task":
            tasks.setdefault(score.subject, []).append(score)
    return [min(metrics, key=_preference) for metrics in tasks.values()]


def _preference(score: Score) -> int:
    """Return the rank of a metric."""
    return _PREFERRED.index(score.metric) if score.metric in _PREFERRED else len(_PREFERRED)


def mean_of(values: Sequence[float]) -> float:
    """Return a mean, also of numbers that are none or that are too large to add up exactly."""
    try:
        return statistics.fmean(values)
    except (OverflowError, ValueError):  # beyond the largest double; infinity minus infinity
        return math.fsum(value / len(values) for value in values if math.isfinite(value)) + sum(
            value for value in values if not math.isfinite(value)
        )


def deviation_of(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample; ``None`` of one value, or where it has none."""
    if len(values) < 2 or not all(map(drawable, values)):
        return None
    return statistics.stdev(values)


def drawable(value: float) -> bool:
    """Whether a number can be squared, and told from its neighbours in a picture."""
    return abs(value) < _LARGEST


def spread(values: Sequence[float]) -> Spread:
    """Summarise one number over seeds.

    Args:
        values: One for each seed, at least one.
    """
    return Spread(
        mean=mean_of(values),
        low=min(values),
        high=max(values),
        deviation=deviation_of(values),
        seeds=len(values),
    )


def interval(differences: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean and the ends of its confidence interval by Student's t.

    Args:
        differences: One for each seed, at least one; with one there is no interval, nor where one
            is infinite or no number.
    """
    from scipy.stats import t

    mean, n, deviation = mean_of(differences), len(differences), deviation_of(differences)
    if deviation is None:
        return mean, None, None
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def of_arm(records: Iterable[ArmRecord], arm: str) -> list[ArmRecord]:
    """Return the records of one arm, by seed."""
    return sorted((r for r in records if r.arm == arm), key=lambda record: record.seed)


def reference(records: Iterable[ArmRecord]) -> str | None:
    """Return the label of the arm that the others are held to; ``None`` if it has no record yet."""
    return next((record.arm for record in records if record.role == "reference"), None)


def fine_tuned(records: Iterable[ArmRecord]) -> list[ArmRecord]:
    """Return the records with fine-tuning, run and scores, in the place of pre-training.

    Records without fine-tuning are left out.
    """
    return [
        record.model_copy(update={"train": record.fine_tuning, "after": record.after_fine_tuning})
        for record in records
        if record.fine_tuning is not None and record.after_fine_tuning is not None
    ]


def norm_ratios(records: Iterable[ArmRecord]) -> dict[str, float]:
    """Summarise how large one arm's new hidden weights are beside those of the upper parents.

    Returns:
        Role → median over new blocks and seeds of the median row norm; none where none were fused.
    """
    by_role: dict[str, list[float]] = {}
    for record in records:
        for block in record.alignment.blocks if record.alignment else ():
            for role, ratio in block.norm_ratios.items():
                by_role.setdefault(role, []).append(ratio)
    return {role: statistics.median(ratios) for role, ratios in by_role.items()}


def flops(run: TrainRecord) -> float:
    """Return the model FLOPs that a run spent by our own formula, reading of old text included."""
    return run.flops_per_token * run.tokens + (run.protect.flops if run.protect else 0.0)


def seconds(run: TrainRecord) -> float:
    """Return how long a run took, passes before training included: of the trunk, of old text."""
    return run.wall_seconds + sum(part.seconds for part in (run.trunk, run.protect) if part)


def training_of(run: TrainRecord) -> Mapping[str, Any]:
    """Return what a run's recipe says of training; nothing where it says nothing."""
    training = run.recipe.get("training")
    return training if isinstance(training, dict) else {}


def learning_rate(run: TrainRecord) -> float | None:
    """Return the learning rate that a run's recipe names."""
    rate = training_of(run).get("learning_rate")
    return float(rate) if isinstance(rate, int | float) else None


def same_tokens(run: TrainRecord, other: TrainRecord) -> bool:
    """Whether two runs of one seed read the same sequences, as far as the shorter one goes.

    They do unless one of them replays other text.
    """
    ours, theirs = ([(s.name, s.share) for s in one.sources] for one in (run, other))
    return ours == theirs


def mean_losses(run: TrainRecord, parts: int = 4) -> list[float]:
    """Return the mean training loss of a run, the area under its curve, and that of its parts.

    Args:
        run: A run of at least one point.
        parts: How many equal stretches of the run follow the whole; those without a point are NaN.
    """
    losses = [point.loss_nats_per_token for point in run.curve]
    count = len(losses)
    stretches = [losses[i * count // parts : (i + 1) * count // parts] for i in range(parts)]
    return [mean_of(part) if part else math.nan for part in (losses, *stretches)]


def loss_curve(records: Sequence[ArmRecord]) -> list[CurvePoint]:
    """Return the training loss of one arm over its seeds, at the steps that all of them have."""
    return _curve([{point.step: point for point in record.train.curve} for record in records])


def loss_against(records: Sequence[ArmRecord], others: Sequence[ArmRecord]) -> list[CurvePoint]:
    """Return the training loss of one arm minus another's on the same tokens, paired by seed.

    Both have read the same sequences up to every step, so that the difference is free of the noise
    that the data's order makes; runs that have not, one of which replays, are left out.
    """
    by_seed = {record.seed: record for record in others}
    differences = []
    for record in records:
        if record.seed not in by_seed or not same_tokens(record.train, by_seed[record.seed].train):
            continue
        theirs = {p.step: p.loss_nats_per_token for p in by_seed[record.seed].train.curve}
        differences.append(
            {
                point.step: point.model_copy(
                    update={"loss_nats_per_token": point.loss_nats_per_token - theirs[point.step]}
                )
                for point in record.train.curve
                if point.step in theirs
            }
        )
    return _curve(differences)


def _curve(runs: Sequence[dict[int, LossPoint]]) -> list[CurvePoint]:
    """Summarise runs step by step, where all of them have a loss that can be drawn."""
    runs = [
        {step: point for step, point in run.items() if drawable(point.loss_nats_per_token)}
        for run in runs
    ]
    if not runs:
        return []
    common = sorted(set.intersection(*(set(run) for run in runs)))
    return [
        CurvePoint(
            tokens=runs[0][step].tokens,
            seconds=statistics.fmean(run[step].wall_seconds for run in runs),
            value=spread([run[step].loss_nats_per_token for run in runs]),
        )
        for step in common
    ]


def thinned(curve: Sequence[CurvePoint], most: int = 150) -> list[CurvePoint]:
    """Return a curve of at most that many points, each the mean of neighbouring ones.

    Args:
        curve: Points in order.
        most: Largest number of points.
    """
    size = -(-len(curve) // most)
    if size <= 1:
        return list(curve)
    groups = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [
        CurvePoint(
            tokens=group[-1].tokens,
            seconds=group[-1].seconds,
            value=Spread(
                mean=statistics.fmean(point.value.mean for point in group),
                low=statistics.fmean(point.value.low for point in group),
                high=statistics.fmean(point.value.high for point in group),
                deviation=None,
                seeds=group[0].value.seeds,
            ),
        )
        for group in groups
    ]
