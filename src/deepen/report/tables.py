"""Tables of a study, for the page and for Markdown alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepen.comparison import statistics as aggregate
from deepen.comparison.statistics import Score
from deepen.records.evaluation import EvalRecord
from deepen.records.study import ArmRecord, PairedDifference
from deepen.report import text
from deepen.report.bars import base_depth, is_clear, written

_SHOWN_OF_TEXTS = ("token_perplexity", "loss_nats_per_token")
_PARTS = 4
"""Stretches of a run whose training losses are compared."""
GAINS = {
    "learned": "loss_nats_per_token",
    "forgotten": "loss_nats_per_token",
    "learned in tasks": "mean acc",
    "forgotten in tasks": "mean acc",
}
"""What is learned and forgotten on the mean → the metric that it is written as."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    """The number."""
    notes: tuple[str, ...] = ()
    """Further lines in small print."""
    best: bool = False
    """Whether it is the best of its column."""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    """What it shows."""
    header: list[str]
    """One name for each column, the first one included."""
    rows: list[tuple[str, list[Cell]]]
    """Name of the row, and its cells."""


def main_scores(evaluation: EvalRecord) -> list[Score]:
    """Choose what the main table shows: perplexity and loss of texts, one metric of each task."""
    scores = aggregate.scores(evaluation)
    texts = [s for s in scores if s.kind == "text" and s.metric in _SHOWN_OF_TEXTS]
    return texts + aggregate.main_metrics(evaluation)


def heading(score: Score) -> str:
    """Write a score as a column's name."""
    return f"{score.subject} {text.metric(score.metric)}" + (
        ", %" if text.is_share(score.metric) else ""
    )


@dataclass(frozen=True)
class Results:
    """Scores of all arms, ready for tables."""

    records: Sequence[ArmRecord]
    """Lines of records.jsonl."""
    arms: Sequence[str]
    """Labels in order, only those that have a record."""
    differences: Sequence[PairedDifference]
    """All of the study."""

    @property
    def base(self) -> str | None:
        """The label of the reference, if it has a record."""
        return aggregate.reference(self.records)

    def values(self, arm: str, score: Score, *, after: bool = True) -> list[float]:
        """Return one score of an arm, by seed."""
        evaluations = [
            record.after if after else record.before
            for record in aggregate.of_arm(self.records, arm)
        ]
        return [s.value for e in evaluations for s in aggregate.scores(e) if s.name == score.name]

    def mean(self, arm: str, score: Score, *, after: bool = True) -> float:
        """Return the mean of a score over an arm's seeds; NaN where it has none."""
        values = self.values(arm, score, after=after)
        return aggregate.mean_of(values) if values else math.nan

    def best(self, score: Score, *, after: bool = True) -> str:
        """Return the arm with the best mean, the first of equals."""
        sign = -1 if score.higher_is_better else 1
        means = {arm: sign * self.mean(arm, score, after=after) for arm in self.arms}
        return min(means, key=lambda arm: (math.isnan(means[arm]), means[arm]))

    def difference(self, arm: str, other: str | None, score: str) -> PairedDifference | None:
        """Return the difference of two arms in the score of that name."""
        wanted = (arm, other, score)
        return next((d for d in self.differences if (d.arm, d.other, d.score) == wanted), None)

    def against_base(self, arm: str, score: Score) -> PairedDifference | None:
        """Return the difference of an arm to the reference."""
        return self.difference(arm, self.base, score.name)

    def table(self, caption: str, scores: Sequence[Score], cell: Callable[..., Cell]) -> Table:
        """Make a table of arms × scores."""
        header = ["arm", *(heading(score) for score in scores)]
        rows = [(arm, [cell(arm, score) for score in scores]) for arm in self.arms]
        return Table(caption, header, rows)

    def after(self, scores: Sequence[Score]) -> Table:
        """Scores after training: mean ± standard deviation over seeds."""
        return self.table("After training", scores, self._spread_cell)

    def before(self, scores: Sequence[Score]) -> Table:
        """Scores before training: mean over seeds."""
        return self.table("Before training", scores, lambda a, s: self._mean_cell(a, s, False))

    def against(self, scores: Sequence[Score]) -> Table:
        """Differences to the reference with their intervals."""
        caption = f"Difference to “{self.base}” after training"
        return self.table(caption, scores, self._difference_cell)

    def together(self, scores: Sequence[Score], caption: str = "After training") -> Table:
        """Scores with the difference to the reference and the score before in small print."""
        return self.table(caption, scores, self._full_cell)

    def pairs(self, scores: Sequence[Score]) -> Table:
        """Differences of all pairs of arms but those with the reference."""
        pairs = {(d.arm, d.other): None for d in self.differences if d.other != self.base}
        return self.chosen_pairs(list(pairs), scores, "Differences between the other arms")

    def chosen_pairs(
        self, pairs: Sequence[tuple[str, str]], scores: Sequence[Score], caption: str
    ) -> Table:
        """Differences of some pairs of arms, in what they learned and forgot and in scores.

        Args:
            pairs: The arm, and the one that is subtracted.
            scores: The scores.
            caption: What to call the table.
        """
        known = {d.score for d in self.differences}
        columns = [(name, name, metric) for name, metric in GAINS.items() if name in known]
        columns += [(heading(score), score.name, score.metric) for score in scores]
        rows = [
            (f"{a} − {b}", [self._pair_cell(a, b, name, metric) for _, name, metric in columns])
            for a, b in pairs
        ]
        return Table(caption, ["pair", *(title for title, _, _ in columns)], rows)

    def _pair_cell(self, arm: str, other: str, score: str, metric: str) -> Cell:
        """Write the difference of two arms, whichever way round it was recorded."""
        found = self.difference(arm, other, score)
        if found is None and (turned := self.difference(other, arm, score)) is not None:
            low, high = turned.low, turned.high
            found = turned.model_copy(
                update={
                    "mean": -turned.mean,
                    "low": None if high is None else -high,
                    "high": None if low is None else -low,
                }
            )
        return difference_cell(found, metric)

    def every(self) -> Table:
        """Every metric of every arm after training, a row each: mean over seeds."""
        rows = [
            (heading(score), [self._mean_cell(arm, score, after=True) for arm in self.arms])
            for score in aggregate.scores(self.records[0].after)
        ]
        return Table("Every score after training", ["score", *self.arms], rows)

    def _mean_cell(self, arm: str, score: Score, after: bool) -> Cell:
        """Write a mean; what reads like the best one is best too."""
        if not self.values(arm, score, after=after):
            return Cell("–")
        shown = text.score(score.metric, self.mean(arm, score, after=after))
        best = self.mean(self.best(score, after=after), score, after=after)
        return Cell(shown, best=shown == text.score(score.metric, best))

    def _spread_cell(self, arm: str, score: Score) -> Cell:
        """Write a mean and the standard deviation over seeds."""
        cell = self._mean_cell(arm, score, after=True)
        deviation = aggregate.deviation_of(self.values(arm, score))
        if deviation is None:
            return cell
        plus_minus = f"± {text.difference(score.metric, deviation).removeprefix('+')}"
        return Cell(cell.text, (plus_minus,), cell.best)

    def _difference_cell(self, arm: str, score: Score) -> Cell:
        """Write the difference to the reference."""
        return difference_cell(self.against_base(arm, score), score.metric)

    def _full_cell(self, arm: str, score: Score) -> Cell:
        """Write the mean after training, and the rest in small print."""
        after = self._mean_cell(arm, score, after=True)
        before = self._mean_cell(arm, score, after=False).text
        difference = self.against_base(arm, score)
        notes = (written(difference, score.metric),) if difference else ()
        return Cell(after.text, (*notes, f"before {before}"), after.best)


def difference_cell(difference: PairedDifference | None, metric: str) -> Cell:
    """Write a difference; one whose interval leaves out zero is marked with a star."""
    if difference is None:
        return Cell("–")
    return Cell(written(difference, metric) + (" *" if is_clear(difference) else ""))


def stretches(records: Sequence[ArmRecord], arms: Sequence[str]) -> Table | None:
    """Mean training loss of the run, and of its quarters the difference to the reference's.

    Only arms that read the same tokens in as many steps are compared; ``None`` if none did.
    """
    base = aggregate.reference(records)
    theirs = {record.seed: record.train for record in records if record.arm == base}
    rows = []
    for arm in arms:
        runs = [
            (r.train, theirs[r.seed])
            for r in aggregate.of_arm(records, arm)
            if r.seed in theirs
            and aggregate.same_tokens(r.train, theirs[r.seed])
            and len(r.train.curve) == len(theirs[r.seed].curve) >= _PARTS
        ]
        if not runs:
            continue
        losses = [[aggregate.mean_losses(run, _PARTS) for run in pair] for pair in runs]
        whole = text.fixed(aggregate.spread([ours[0] for ours, _ in losses]).mean, 4)
        cells = [_stretch(losses, part) for part in range(_PARTS + 1)] if arm != base else []
        rows.append((arm, [Cell(whole), *(cells or [Cell("–")] * (_PARTS + 1))]))
    header = ["arm", "whole run", "difference", "1st quarter", "2nd", "3rd", "4th"]
    caption = f"Mean training loss, and its difference to “{base}”"
    return Table(caption, header, rows) if len(rows) > 1 else None


def _stretch(losses: Sequence[Sequence[Sequence[float]]], part: int) -> Cell:
    """Write the difference to the reference in one stretch of the run, paired by seed."""
    mean, low, high = aggregate.interval([ours[part] - other[part] for ours, other in losses])
    metric = "loss_nats_per_token"
    told = f"{text.difference(metric, mean)} {text.interval(metric, low, high)}".rstrip()
    clear = low is not None and high is not None and not low <= 0 <= high
    return Cell(told + (" *" if clear else ""))


def cost(records: Sequence[ArmRecord], arms: Sequence[str]) -> Table:
    """What each arm costs: size, time, memory, arithmetic."""
    header = [
        *("arm", "blocks", "parameters", "trained", "training time", "tokens per second"),
        *("time per step", "peak memory", "FLOPs per token", "utilisation", "growing"),
    ]
    depth = base_depth(records)
    rows = [(arm, _cost(aggregate.of_arm(records, arm), depth)) for arm in arms]
    return Table("Cost", header, rows)


def _cost(records: Sequence[ArmRecord], depth: int) -> list[Cell]:
    """Write the cost of one arm; times, rates and memory are means over seeds."""
    train, grow = records[0].train, records[0].grow
    runs = [record.train for record in records]
    growing = [r.grow.wall_seconds for r in records if r.grow and r.grow.wall_seconds is not None]

    def mean(values: Sequence[float]) -> float:
        return aggregate.spread(values).mean

    share = text.share(train.trainable_parameters / train.parameters)
    return [
        Cell(str(grow.depth if grow else depth)),
        Cell(text.count(train.parameters)),
        Cell(text.count(train.trainable_parameters), (share,)),
        Cell(text.seconds(mean([run.wall_seconds for run in runs]))),
        Cell(text.count(mean([run.tokens_per_second for run in runs]))),
        Cell(text.seconds(mean([run.step_time.total_seconds for run in runs]))),
        Cell(text.size(mean([run.peak_bytes for run in runs]))),
        Cell(text.count(train.flops_per_token)),
        Cell(text.share(mean([run.utilisation for run in runs]))),
        Cell(text.seconds(mean(growing)) if growing else "–"),
    ]


def markdown(table: Table) -> str:
    """Write a table in Markdown, the best of each column in bold."""
    aligned = ["---", *("---:" for _ in table.header[1:])]
    lines = [_row(table.header), _row(aligned)]
    lines += [_row([name, *map(_entry, cells)]) for name, cells in table.rows]
    return "\n".join(lines)


def _entry(cell: Cell) -> str:
    """Write a cell in one line."""
    return " ".join([f"**{cell.text}**" if cell.best else cell.text, *cell.notes])


def _row(cells: Sequence[str]) -> str:
    """Write a line of a Markdown table."""
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"


def plain(told: str) -> str:
    """Write a text for Markdown so that it is one line, and no HTML."""
    return " ".join(told.split()).replace("<", "&lt;")
