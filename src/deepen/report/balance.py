"""Learned against forgotten, as picture and tables; the learning rates that were tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepen.comparison import balance as gained
from deepen.comparison import statistics as aggregate
from deepen.comparison.balance import Kind
from deepen.records.study import Role
from deepen.records.training import TrainRecord
from deepen.report import text
from deepen.report.bars import is_clear, written
from deepen.report.scatter import Arm, Scatter, Span, scatter
from deepen.report.tables import Cell, Results, Table

ROLES: Mapping[Role, str] = {
    "reference": "reference: the base, trained on",
    "alternative": "alternative: another way to train the base",
    "grown": "grown",
}
"""What roles are."""
_METRICS: Mapping[Kind, str] = {"text": "loss_nats_per_token", "task": "mean acc"}
_UNITS: Mapping[Kind, str] = {"text": "nats per token", "task": "points"}
_MEANS = {gained.name(side, kind): (side, kind) for kind in gained.KINDS for side in gained.SIDES}


@dataclass(frozen=True)
class Balance:
    """What arms learned and forgot up to the end of one stage."""

    stage: str
    """When this was."""
    pictures: list[Scatter]
    """Of texts, of tasks, where both sides were measured."""
    table: Table
    """An arm a row, with what it cost."""
    single: Table | None
    """Text by text and task by task, where a side has several."""


def balance(results: Results, front: Sequence[str], stage: str) -> Balance | None:
    """Gather what arms learned and forgot; ``None`` if no text and no task has a side.

    Args:
        results: Scores of a stage.
        front: Labels of the arms that no other beats, by the first kind that has both sides.
        stage: What to call it.
    """
    values = gained.all_changes(results.records)
    names = list(dict.fromkeys(name for of_run in values.values() for name in of_run))
    if not names:
        return None
    kinds = gained.kinds(results.records)
    fronts = {kind: list(front) for kind in kinds[:1]}
    for kind in kinds[1:]:
        fronts[kind] = gained.front(results.records, results.arms, kind)
    drawn = [_scatter(results, values, kind, fronts[kind]) for kind in kinds]
    means = [name for name in _MEANS if name in names]
    single = [name for name in names if name not in means]
    return Balance(
        stage=stage,
        pictures=[picture for picture in drawn if picture is not None],
        table=_table(results, values, means, fronts, stage),
        single=_single(results, values, single) if len(single) > len(means) else None,
    )


def _of_arm(values: gained.Values, arm: str, name: str) -> list[float]:
    """Return one number of an arm, by seed."""
    runs = [of_run for (label, _), of_run in sorted(values.items()) if label == arm]
    return [of_run[name] for of_run in runs if name in of_run]


def _scatter(
    results: Results, values: gained.Values, kind: Kind, front: Sequence[str]
) -> Scatter | None:
    """Draw one kind of scores."""
    roles = {record.arm: record.role for record in results.records}
    arms = []
    for index, arm in enumerate(results.arms):
        spans = []
        for side in gained.SIDES:
            numbers = _of_arm(values, arm, gained.name(side, kind))
            spans += [aggregate.interval(numbers)] if numbers else []
        if len(spans) == len(gained.SIDES) and all(aggregate.drawable(mean) for mean, *_ in spans):
            told = ", ".join(
                f"{verb} {_written(span, kind)}"
                for verb, span in zip(("learned", "forgotten"), spans, strict=True)
            )
            arms.append(Arm(index, arm, roles[arm], spans[0], spans[1], arm in front, told))
    what = "text" if kind == "text" else "tasks"
    return scatter(arms, what, _UNITS[kind], 1.0 if kind == "text" else 100.0)


def _written(span: Span, kind: Kind) -> str:
    """Write a mean and its interval."""
    mean, low, high = span
    interval = text.interval(_METRICS[kind], low, high)
    return f"{text.difference(_METRICS[kind], mean)} {interval}".rstrip()


def _table(
    results: Results,
    values: gained.Values,
    means: Sequence[str],
    fronts: Mapping[Kind, Sequence[str]],
    stage: str,
) -> Table:
    """Make the table of all arms."""
    header = ["arm", "role"]
    for mean in means:
        side, kind = _MEANS[mean]
        header.append(f"{'learned' if side == 'new' else 'forgotten'}, {_UNITS[kind]}")
    header += [f"on the front{' of tasks' if kind == 'task' else ''}" for kind in fronts]
    header += ["trained parameters", "FLOPs", "time", "peak memory", "learning rate"]
    beaten = {
        kind: gained.clearly_beaten(results.differences, results.arms, kind) for kind in fronts
    }
    rows = []
    for arm in results.arms:
        runs = aggregate.of_arm(results.records, arm)
        cells = [Cell(runs[0].role)]
        cells += [_change(results, values, arm, mean) for mean in means]
        cells += [_standing(arm, fronts[kind], beaten[kind]) for kind in fronts]
        rows.append((arm, cells + _cost([record.train for record in runs])))
    return Table(f"Learned and forgotten {stage}, and the cost", header, rows)


def _change(results: Results, values: gained.Values, arm: str, name: str) -> Cell:
    """Write what an arm learned or forgot, with its difference to the reference."""
    side, kind = _MEANS[name]
    means = {
        one: aggregate.spread(numbers).mean
        for one in results.arms
        if (numbers := _of_arm(values, one, name))
    }
    if arm not in means:
        return Cell("–")
    metric, best = _METRICS[kind], (max if side == "new" else min)(means.values())
    shown = text.difference(metric, means[arm])
    return Cell(
        shown,
        _notes(results, arm, name, metric, _of_arm(values, arm, name)),
        shown == text.difference(metric, best),
    )


def _notes(
    results: Results, arm: str, name: str, metric: str, numbers: Sequence[float]
) -> tuple[str, ...]:
    """Write the standard deviation over seeds, and the difference to the reference."""
    deviation = aggregate.spread(numbers).deviation
    notes = [] if deviation is None else [f"± {text.difference(metric, deviation)[1:]}"]
    difference = results.difference(arm, results.base, name)
    if difference is not None:
        star = " *" if is_clear(difference) else ""
        notes.append(f"Δ {written(difference, metric)}{star}")
    return tuple(notes)


def _standing(arm: str, front: Sequence[str], beaten: Mapping[str, Sequence[str]]) -> Cell:
    """Say whether an arm is on the front, and by whom it is clearly beaten."""
    if arm in front:
        return Cell("yes", best=True)
    by = beaten.get(arm, [])
    if not by:
        return Cell("no")
    more = f" and {len(by) - 1} more" if len(by) > 1 else ""
    return Cell("no", (f"clearly beaten by {by[0]}{more}",))


def _cost(runs: Sequence[TrainRecord]) -> list[Cell]:
    """Write what training an arm costs; means over seeds."""
    rate = aggregate.learning_rate(runs[0])
    return [
        Cell(text.count(runs[0].trainable_parameters)),
        Cell(text.count(aggregate.spread([aggregate.flops(run) for run in runs]).mean)),
        Cell(text.seconds(aggregate.spread([aggregate.seconds(run) for run in runs]).mean)),
        Cell(text.size(aggregate.spread([run.peak_bytes for run in runs]).mean)),
        Cell(text.rate(rate) if rate is not None else "–"),
    ]


def _single(results: Results, values: gained.Values, names: Sequence[str]) -> Table:
    """Write every text and task by itself."""
    metrics = {
        gained.name(score.side, score.kind, score.subject): score.metric
        for score in gained.sided_scores(results.records[0].after)
        if score.side is not None
    }
    rows = []
    for arm in results.arms:
        cells = []
        for name in names:
            numbers, metric = _of_arm(values, arm, name), metrics[name]
            notes = _notes(results, arm, name, metric, numbers) if numbers else ()
            mean = text.difference(metric, aggregate.spread(numbers).mean) if numbers else "–"
            cells.append(Cell(mean, notes))
        rows.append((arm, cells))
    return Table("Text by text and task by task", ["arm", *names], rows)


def rates(searched: Mapping[str, Mapping[str, float | None]], stage: str) -> Table | None:
    """Write a search for learning rates, the chosen one marked; ``None`` if there was none.

    Args:
        searched: Label → learning rate → loss, as in ``StudySummary.rates``.
        stage: What was trained at these rates.
    """
    columns = sorted({float(rate) for tried in searched.values() for rate in tried})
    rows = []
    for arm, tried in searched.items():
        losses = {float(rate): loss for rate, loss in tried.items()}
        found = sorted((loss, rate) for rate, loss in losses.items() if loss is not None)
        chosen = found[0][1] if found else None
        rows.append((arm, [_tried(losses, rate, rate == chosen) for rate in columns]))
    header = ["arm", *map(text.rate, columns)]
    caption = f"Loss at each learning rate that was tried for {stage}"
    return Table(caption, header, rows) if rows else None


def _tried(losses: Mapping[float, float | None], rate: float, chosen: bool) -> Cell:
    """Write what a learning rate came to."""
    loss = losses.get(rate)
    if loss is None:
        return Cell("diverged" if rate in losses else "")
    return Cell(text.fixed(loss, 4), best=chosen)
