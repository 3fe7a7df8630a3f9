"""Everything that the two templates show, gathered from records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml

from deepen.comparison import statistics as aggregate
from deepen.comparison.statistics import Score
from deepen.records.study import ArmRecord, StudySummary
from deepen.report import bars, curves, tables, text
from deepen.report.alignment import alignment
from deepen.report.balance import ROLES, balance, rates
from deepen.report.tables import Cell, Results, Table

_COMMON_NAMES = {"base", "checkpoint", "grown", "model", "output", "run", "runs", "study"}
"""Names that half of all folders have."""
_NAMED = 3
"""How many other ways to train the base the title names."""


@dataclass(frozen=True)
class Headline:
    """The best arm in one score."""

    score: str
    """The score."""
    arm: str
    """The arm with the best mean."""
    index: int
    """Its index."""
    value: str
    """Its mean after training."""
    against: str
    """How it compares with the reference, in a sentence."""


def context(records: Sequence[ArmRecord], summary: StudySummary) -> dict[str, Any]:
    """Gather what the templates show.

    Args:
        records: Lines of records.jsonl, at least one of the summary's arms and seeds.
        summary: The study's summary.
    """
    records = [r for r in records if r.arm in summary.arms and r.seed in summary.seeds]
    arms = [arm for arm in summary.arms if any(record.arm == arm for record in records)]
    results = Results(records, arms, summary.differences)
    main = tables.main_scores(records[0].after)
    shown = [score for score in main if score.metric != "token_perplexity"]
    strips = [
        s for score in shown if (s := bars.strips(summary.differences, arms, results.base, score))
    ]
    tuned = Results(aggregate.fine_tuned(records), arms, summary.fine_tuned_differences)
    complete = len(tuned.records) == len(records)
    balances = [balance(results, summary.front, "after training")]
    if complete:
        balances.append(balance(tuned, summary.fine_tuned_front, "after fine-tuning"))
    named = summary.study.get("pairs")
    pairs = [(str(p[0]), str(p[1])) for p in (named if isinstance(named, list) else []) if _two(p)]
    return {
        "balances": [one for one in balances if one is not None],
        "reference": "the reference" if results.base is None else f"“{results.base}”",
        "roles": [(role, name) for role, name in ROLES.items() if role in summary.roles.values()],
        "terms": _terms(records, summary),
        "named_pairs": results.chosen_pairs(pairs, shown, "Pairs that the study names"),
        "stretches": tables.stretches(records, arms),
        "rates": list(filter(None, _searches(summary))),
        "tuned": tuned.together(main, "After fine-tuning") if complete else None,
        "title": _title(records, summary),
        "facts": _facts(records, summary),
        "missing": _missing(records, summary),
        "arms": list(enumerate(arms)),
        "headlines": [_headline(results, score) for score in _headline_scores(main)],
        "together": results.together(main),
        "after": results.after(main),
        "before": results.before(main),
        "against": results.against(shown),
        "pairs": results.pairs(shown),
        "every": results.every(),
        "strips": strips,
        "charts": _charts(records, arms),
        "tuned_charts": _charts(tuned.records, arms),
        "cost": tables.cost(records, arms),
        "times": bars.times(records, arms),
        "memory": bars.memory(records, arms),
        "stacks": bars.stacks(records, arms),
        "alignment": alignment(records, arms),
        "study": yaml.safe_dump(summary.study, sort_keys=False, allow_unicode=True),
        "software": _software(records, summary),
        "runs": _runs(records),
        "measures": _measures(records),
        "notes": _notes(records, arms),
        "many_seeds": len(summary.seeds) > 1,
    }


def _two(pair: object) -> bool:
    """Whether something is a list of two."""
    return isinstance(pair, list | tuple) and len(pair) == 2


def _title(records: Sequence[ArmRecord], summary: StudySummary) -> str:
    """Head the page as the study says, or with its folder, its base and what was compared."""
    study = summary.study
    if study.get("title"):
        return str(study["title"])
    base = study.get("base") or next((r.grow.step.base.name for r in records if r.grow), "base")
    grown = [arm for arm in summary.arms if summary.roles[arm] == "grown"]
    others = [arm for arm in summary.arms if summary.roles[arm] == "alternative"]
    ways = len(grown or summary.arms)
    title = f"{_name(str(base))}, {'grown and ' * bool(grown)}trained in {ways} "
    title += "way" if ways == 1 else "ways"
    if grown and others:
        named = ", ".join(others[:_NAMED]) if len(others) <= _NAMED else f"{len(others)} others"
        title += f", beside {named}"
    return f"{_name(str(study['output']))}: {title}" if study.get("output") else title


def _terms(records: Sequence[ArmRecord], summary: StudySummary) -> list[str]:
    """Say on what terms arms were trained, and which of them the others are held to."""
    sources = [[source.share for source in record.train.sources] for record in records]
    mixed = len({tuple(shares) for shares in sources}) > 1
    seeds = ", the same for all arms of a seed" if len(summary.seeds) > 1 else ""
    terms = [f"Every arm was trained on the same tokens in the same order{seeds}."]
    if summary.study.get("budget") == "flops":
        terms = [
            f"Every arm had the FLOPs of the reference, so that one that costs less for a token "
            f"was trained on more of them, in the same order{seeds}."
        ]
    if mixed:
        terms.append("Arms that replay took a part of their sequences from old text instead.")
    base = aggregate.reference(records)
    if base is None:
        terms.append("The base, trained on, which the others are held to, has no record yet.")
    else:
        terms.append(f"The others are held to the base, trained on (“{base}”).")
    return terms


def _name(path: str) -> str:
    """Shorten a path to the part that tells it apart: its end, from the last telling name on."""
    names = [name for name in path.replace("\\", "/").split("/") if name not in ("", ".", "..")]
    telling = [i for i, name in enumerate(names) if name.casefold() not in _COMMON_NAMES]
    return "/".join(names[telling[-1] if telling else 0 :]) or path


def _facts(records: Sequence[ArmRecord], summary: StudySummary) -> list[tuple[str, str]]:
    """List what is the same for all arms."""
    train = records[0].train
    grown = sorted({(r.grow.base_depth, r.grow.depth) for r in records if r.grow})
    facts = [
        ("tokens for every arm", _range([r.train.tokens for r in records], text.count)),
        ("steps", _range([r.train.steps for r in records], lambda n: text.fixed(n, 0))),
        ("sequence length", str(train.sequence_length)),
        ("seeds", ", ".join(map(str, summary.seeds))),
        ("arithmetic", f"{train.precision} on {train.device}"),
        ("stage", {"cpt": "continual pre-training", "sft": "fine-tuning"}[train.stage]),
    ]
    if (tuned := records[0].fine_tuning) is not None:
        facts.append(("fine-tuning", f"{tuned.steps:,} steps, {text.count(tuned.tokens)} tokens"))
    if grown:
        depths = ", ".join(f"{before} → {after}" for before, after in grown)
        facts.insert(0, ("blocks", depths))
    return facts


def _range(values: Sequence[int], write: Callable[[float], str]) -> str:
    """Write a number, or the least and the most of several."""
    least, most = min(values), max(values)
    return write(least) if least == most else f"{write(least)} to {write(most)}"


def _missing(records: Sequence[ArmRecord], summary: StudySummary) -> list[str]:
    """List the arms and seeds that have no record yet."""
    there = {(record.arm, record.seed) for record in records}
    return [f"{a}, seed {s}" for a in summary.arms for s in summary.seeds if (a, s) not in there]


def _headline_scores(main: Sequence[Score]) -> list[Score]:
    """Choose the scores that stand at the top: the texts' perplexity, and accuracy as a whole."""
    texts = [score for score in main if score.metric == "token_perplexity"]
    tasks = [score for score in main if score.kind == "task"]
    return [*texts[:3], *tasks[-1:]]


def _searches(summary: StudySummary) -> list[Table | None]:
    """Write the searches for learning rates, stage by stage."""
    tried = {"pre-training": summary.rates, "fine-tuning": summary.fine_tuning_rates}
    return [rates(found, stage) for stage, found in tried.items()]


def _headline(results: Results, score: Score) -> Headline:
    """Say which arm is best in a score, and how sure that is."""
    best = results.best(score)
    value = text.score(score.metric, results.mean(best, score))
    difference = results.against_base(best, score)
    if best == results.base:
        against = "The base, trained on."
    elif difference is None:
        against = "There is nothing to compare with yet."
    else:
        against = f"{bars.written(difference, score.metric)} against “{results.base}”"
        if difference.low is None:
            against += "; one seed, no interval."
        elif bars.is_clear(difference):
            against += "; the interval leaves out zero."
        else:
            against += "; the interval holds zero."
    if text.is_share(score.metric):
        value += "\N{THIN SPACE}%"
    return Headline(
        score=f"{score.subject}: {text.metric(score.metric)}",
        arm=best,
        index=results.arms.index(best),
        value=value,
        against=against,
    )


def _charts(records: Sequence[ArmRecord], arms: Sequence[str]) -> list[curves.Chart]:
    """Draw the training loss in three ways; nothing without records."""
    drawn = [
        curves.loss_chart(records, arms, lambda p: p.tokens, "Loss against tokens", "tokens"),
        curves.loss_chart(
            records, arms, lambda p: p.seconds, "Loss against time", "seconds of training"
        ),
        curves.difference_chart(records, arms),
    ]
    return [chart for chart in drawn if chart is not None]


def _software(records: Sequence[ArmRecord], summary: StudySummary) -> list[tuple[str, str]]:
    """List the versions of everything that took part, several where they differ."""
    software: dict[str, set[str]] = {}
    parts = [summary.versions]
    for record in records:
        parts += [record.before.versions, record.train.versions, record.after.versions]
        parts += [record.grow.step.versions] if record.grow else []
    for part in parts:
        for package, version in part.items():
            software.setdefault(package, set()).add(version)
    return [(package, ", ".join(sorted(software[package]))) for package in sorted(software)]


def _runs(records: Sequence[ArmRecord]) -> Table:
    """List every run with the fingerprints of its models."""
    header = ["arm", "seed", "base", "before training", "after training", "processes", "resumed"]
    rows = []
    for record in records:
        base = record.grow.step.base.fingerprint if record.grow else record.before.fingerprint
        resumed = record.train.resumed_from_step
        cells = [
            str(record.seed),
            base[:12],
            record.before.fingerprint[:12],
            record.after.fingerprint[:12],
            str(record.train.processes),
            "no" if resumed is None else f"at step {resumed}",
        ]
        rows.append((record.arm, [Cell(cell) for cell in cells]))
    return Table("Runs, with the fingerprints of the models", header, rows)


def _measures(records: Sequence[ArmRecord]) -> Table:
    """List the texts and tasks with their sizes and hashes."""
    evaluation = records[0].after
    rows = [
        (
            score.file,
            [
                Cell(f"{score.tokens:,} tokens, {score.text_bytes:,} bytes"),
                Cell("–"),
                Cell("–"),
                Cell(score.sha256[:12]),
            ],
        )
        for score in evaluation.texts
    ]
    for name, scores in groupby(evaluation.tasks, key=lambda score: score.task):
        task = next(scores)
        shown = [f"{task.samples:,} examples", str(task.shots), task.version, task.task_hash[:12]]
        rows.append((name, [Cell(cell) for cell in shown]))
    return Table("Texts and tasks", ["name", "size", "shots", "version", "hash"], rows)


def _notes(records: Sequence[ArmRecord], arms: Sequence[str]) -> list[str]:
    """Collect what growing had to say, each sentence once for an arm."""
    notes = [
        f"{arm}: {note}"
        for arm in arms
        for record in aggregate.of_arm(records, arm)
        if record.grow
        for note in record.grow.notes
    ]
    return list(dict.fromkeys(notes))
