"""Records as a person reads them in a terminal; nothing is computed here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from deepen.common.progress import Progress as Report
from deepen.comparison import balance
from deepen.comparison import statistics as aggregate
from deepen.records.evaluation import EvalRecord
from deepen.records.growth import GrowRecord, PlanRecord, Step
from deepen.records.study import ArmRecord, StudySummary
from deepen.records.training import StepTime, TrainRecord
from deepen.records.verification import Check, InspectRecord, VerifyRecord
from deepen.report import text as written


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Show the stage at hand and its finished share on stderr, and clear it at the end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, markup=False, emoji=False)
    if not console.is_terminal:  # below rich 15 a bar that is disabled leaves a line all the same
        yield lambda stage, share: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, tuple[TaskID, float]] = {}

        def report(stage: str, share: float) -> None:
            who = stage.partition(":")[0]
            if who not in tasks:
                for finished in [name for name, (_, last) in tasks.items() if last >= 1]:
                    bar.remove_task(tasks.pop(finished)[0])
                tasks[who] = bar.add_task(stage, total=1.0), 0.0
            task, last = tasks[who]
            if share < last:
                bar.reset(task, total=1.0)
            bar.update(task, completed=share, description=stage)
            tasks[who] = task, share

        yield report


def stack(depth: int, new_blocks: list[int]) -> Text:
    """Draw a stack from bottom to top, new blocks in brackets."""
    new, text = set(new_blocks), Text()
    for index in range(depth):
        shown, style = (f"[{index}]", "bold green") if index in new else (str(index), "dim")
        text.append(shown, style)
        text.append(" " if index < depth - 1 else "")
    return text


def facts(rows: list[tuple[str, str | Text]]) -> Table:
    """Lay out names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def columns(*headings: str, texts: int = 1) -> Table:
    """Make a table with that many columns of texts, and then columns of numbers."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < texts else "right")
    return table


def _made_from(step: Step) -> str:
    """Say between which of the base's blocks the new ones lie."""
    parents = [block for block in step.plan if isinstance(block, list)]
    if all(below == above for below, above, _ in parents):
        return "copies of " + ", ".join(str(int(below)) for below, _, _ in parents)
    return ", ".join(
        f"{int(below)}|{int(above)}" + ("" if t == 0.5 else f" at t = {t:.3g}")
        for below, above, t in parents
    )


def growth(record: GrowRecord) -> Table:
    """Show what was done, or what would be."""
    step = record.step
    options = ", ".join(f"{key}={value}" for key, value in record.chosen_options.items())
    share = record.trainable_parameters / record.parameters
    added = record.new_parameters / record.base_parameters
    moved = "changes" if step.trains == "nothing" else "changes until trained"
    rows: list[tuple[str, str | Text]] = [
        ("base", f"{step.base.name} ({step.base.fingerprint[:12]})"),
        ("method", f"{step.method} ({step.reference}){'; ' + options if options else ''}"),
        ("blocks", f"{record.base_depth} → {record.depth}"),
        *([("scores", written.scored(step.scores))] if step.scores else []),
        ("stack", stack(record.depth, step.new_blocks)),
        ("made from", _made_from(step)),
        *([("aligned", written.proven(record.proofs))] if record.proofs else []),
        ("parameters", f"{record.base_parameters:,} → {record.parameters:,} (+{added:.1%})"),
        ("to train", f"{record.trainable_parameters:,} ({share:.1%})"),
        ("function", "that of the base" if step.preserves_function else moved),
        ("weights", size(record.weight_bytes)),
    ]
    if record.out is not None:
        rows += [("written to", record.out), ("manifest", f"SHA-256 {record.manifest}")]
        rows.append(("took", f"{record.wall_seconds:.1f} s, peak memory {size(record.peak_bytes)}"))
    return facts([*rows, *(("note", note) for note in record.notes)])


def plan(record: PlanRecord) -> Group:
    """Show what would be done, and what training would cost."""
    cost = record.cost
    table = columns("training", "GFLOP per token", "step time", "memory", "of that activations")
    for estimate in (cost, *record.alternatives):
        table.add_row(
            estimate.label,
            f"{estimate.flops_per_token / 1e9:.4g}",
            f"{estimate.relative_step_time:.2f}",
            f"{size(estimate.total_bytes)} ({estimate.relative_bytes:.2f})",
            size(estimate.activation_bytes),
            style="bold" if estimate is cost else "",
        )
    conditions = (
        f"Estimated for {cost.sequences} × {cost.sequence_length} tokens in {cost.precision}"
        f"{' with activation checkpointing' if cost.activation_checkpointing else ''}; step time "
        "and memory (in brackets) relative to full training of the grown model."
    )
    return Group(growth(record.growth), Text(), table, Text(conditions, "dim"))


def training(record: TrainRecord) -> Table:
    """Show what was trained and how fast."""
    share = record.trainable_parameters / record.parameters
    last = record.curve[-1]
    return facts(
        [
            ("model", f"{record.model} ({record.stage}, {record.precision} on {record.device})"),
            ("trained", f"{record.trainable_parameters:,} parameters ({share:.1%})"),
            ("steps", f"{record.steps:,} ({record.tokens:,} tokens)"),
            *(
                (f"phase {number}", f"{phase.what}: {phase.steps:,} steps")
                for number, phase in enumerate(record.phases, 1)
            ),
            ("loss", f"{last.loss_nats_per_token:.4f} nats per token at the end"),
            ("speed", f"{record.tokens_per_second:,.0f} tokens per second"),
            ("step", _where_time_goes(record.step_time)),
            ("used", f"{record.utilisation:.1%} of the machine's matrix rate"),
            ("peak memory", size(record.peak_bytes)),
            ("written to", f"{record.output}/model"),
        ]
    )


def _where_time_goes(step: StepTime) -> str:
    """Say where a step's time goes; the first steps of a run are not timed."""
    if step.total_seconds == 0:
        return "not timed: the run has only first steps, which take longer"
    return (
        f"{step.total_seconds:.3g} s: forward {step.forward_seconds:.3g}, backward "
        f"{step.backward_seconds:.3g}, optimizer {step.optimizer_seconds:.3g}"
    )


def evaluation(record: EvalRecord) -> Group:
    """Show losses on texts and scores in tasks."""
    parts: list[Table] = []
    if record.texts:
        texts = columns("text", "tokens", "loss (nats)", "perplexity", "bits per byte")
        for text in record.texts:
            texts.add_row(
                text.file,
                f"{text.tokens:,}",
                f"{text.loss_nats_per_token:.4f}",
                f"{text.token_perplexity:.3f}",
                f"{text.bits_per_byte:.4f}",
            )
        parts.append(texts)
    if record.tasks:
        headings = ("task", "metric", "value", "standard error", "examples", "shots")
        tasks = columns(*headings, texts=2)
        for task in record.tasks:
            error = "" if task.stderr is None else f"{task.stderr:.4f}"
            value = f"{task.value:.4f}"
            tasks.add_row(
                task.task, task.metric, value, error, f"{task.samples:,}", str(task.shots)
            )
        parts.append(tasks)
    return Group(*parts)


def study(summary: StudySummary, records: Sequence[ArmRecord] = ()) -> Group:
    """Show what arms learned and forgot, if texts have sides, and differences to the reference.

    Args:
        summary: The study's summary.
        records: Its records.
    """
    own = [record for record in records if record.arm in summary.arms]
    gained = {d.score for d in summary.differences} & {"learned", "forgotten"}
    table = columns("arm", "score", "arm - reference", "95 % interval", "seeds", texts=2)
    for difference in summary.differences:
        if summary.roles[difference.other] != "reference":
            continue
        if gained and difference.score not in gained:
            continue
        interval = (
            ""
            if difference.low is None or difference.high is None
            else f"{difference.low:+.4f} … {difference.high:+.4f}"
        )
        mean = f"{difference.mean:+.4f}"
        table.add_row(difference.arm, difference.score, mean, interval, str(difference.seeds))
    table.padding = (0, 1, 0, 0)
    for column in table.columns[2:]:
        column.no_wrap = True
    if not any(text.side for record in own for text in record.after.texts):
        return Group(table)
    return Group(learned_and_forgotten(own), Text(), table)


def learned_and_forgotten(records: Sequence[ArmRecord]) -> Table:
    """Show each arm's losses on new and old text and what it cost, means over seeds.

    What no other arm beats on both sides is starred.

    Args:
        records: Lines of records.jsonl, at least one, of texts that have sides.
    """
    names = list(dict.fromkeys(record.arm for record in records))
    table = columns("arm", "new text", "learned", "old text", "forgotten", "trained", "s", "memory")
    table.padding = (0, 1, 0, 0)
    table.caption = "* no other arm learns as much and forgets as little; nats per token"
    table.caption_justify = "left"
    for column in table.columns[1:]:
        column.no_wrap = True
    start = balance.before_training(records, records[0].seed)
    if start is not None:
        before = [_mean(balance.losses(start, side), ".3f") for side in balance.SIDES]
        table.add_row("base, before training", before[0], "", before[1], style="dim")
    gained, front = balance.all_changes(records), balance.front(records, names, "text")
    for name in names:
        runs = [record for record in records if record.arm == name]
        changes = [gained.get((name, run.seed), {}) for run in runs]
        cells = []
        for side in balance.SIDES:
            cells.append(_mean([x for r in runs for x in balance.losses(r.after, side)], ".3f"))
            of_side = balance.name(side, "text")
            cells.append(_mean([one[of_side] for one in changes if of_side in one], "+.3f"))
        table.add_row(
            Text(f"* {name}" if name in front else name, "bold" if name in front else ""),
            *cells,
            written.count(runs[0].train.trainable_parameters).replace("\N{THIN SPACE}", ""),
            _mean([aggregate.seconds(run.train) for run in runs], ".0f"),
            size(round(aggregate.spread([run.train.peak_bytes for run in runs]).mean)),
        )
    return table


def _mean(values: Sequence[float], form: str) -> str:
    """Write a mean in a format; a dash if there is nothing."""
    return format(aggregate.spread(values).mean, form) if values else "–"


def size(nbytes: int | None) -> str:
    """Write a number of bytes for reading."""
    return written.size(nbytes or 0).replace("\N{THIN SPACE}", " ")


def checks(made: Sequence[Check]) -> Table:
    """Show what was looked at and what was found."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for check in made:
        mark = Text("pass", "bold green") if check.passed else Text("FAIL", "bold red")
        table.add_row(mark, check.name, check.detail)
    return table


def verification(record: VerifyRecord) -> Group:
    """Show each check and the verdict."""
    happened = [f"grown by {', then '.join(record.methods)}"] if record.methods else []
    happened += ["trained"] if record.trained else []
    verdict = (
        f"{record.grown} is {record.base} {', and '.join(happened)}."
        if record.passed
        else f"{record.grown} is not what it claims to be."
    )
    style = "bold green" if record.passed else "bold red"
    return Group(checks(record.checks), Text(verdict, style))


def _in_each(record: InspectRecord) -> str:
    """Say how many parameters a block has; a range where blocks differ."""
    sizes = sorted({min(record.parameters_per_block), max(record.parameters_per_block)})
    return " to ".join(f"{size:,}" for size in sizes)


def inspection(record: InspectRecord) -> Group:
    """Show a checkpoint's blocks and lineage."""
    rows: list[tuple[str, str | Text]] = [
        ("model", f"{record.name} ({record.family}, {', '.join(record.dtypes)})"),
        ("parameters", f"{record.parameters:,} ({_in_each(record)} in each block)"),
        ("blocks", stack(record.blocks, record.new_blocks)),
    ]
    if not record.steps:
        rows.append(("lineage", "not grown by deepen"))
        return Group(facts(rows), *_aligned(record))
    share = record.new_parameters / record.parameters
    rows.append(("new", f"{record.new_parameters:,} parameters ({share:.1%})"))
    for number, step in enumerate(record.steps, start=1):
        base = f"{step.base.name} ({step.base.fingerprint[:12]})"
        depth = sum(isinstance(block, int) for block in step.plan)
        blocks = f"{depth} → {len(step.plan)} blocks"
        rows.append((f"step {number}", f"{step.method}: {base}, {blocks}"))
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("block", justify="right")
    table.add_column("from")
    for index, origin in enumerate(record.origins):
        if origin.step == 0:
            table.add_row(str(index), Text(f"base block {origin.block}", "dim"))
            continue
        parents = "|".join(map(str, origin.parents))
        where = (
            f"copy of {parents}" if len(origin.parents) == 1 else f"{parents} at t = {origin.t:.3g}"
        )
        table.add_row(str(index), Text(f"step {origin.step}: {origin.method}, {where}", "green"))
    return Group(facts(rows), table, *_aligned(record))


def _aligned(record: InspectRecord) -> list[Table | Text]:
    """Show how well neighbouring blocks align, if that was measured."""
    if record.alignment is None:
        return []
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    headings = ("blocks", "new", "part", "same", "match", "chance", "stay", "moved", "spread")
    for heading in (*headings, "CKA", "norm"):
        justify: Literal["left", "right"] = "left" if heading == "part" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for block in record.alignment.blocks:
        ratios = sorted(block.norm_ratios.values())
        spread = next((part for part in block.parts if "neurons" in part.part), None)
        for row, part in enumerate(block.parts):
            first = row == 0
            table.add_row(
                f"{block.below}|{block.above}" if first else "",
                str(block.block) if first and block.block is not None else "",
                f"{part.units} {part.part}",
                f"{part.similarity_before:.3f}",
                f"{part.similarity_after:.3f}",
                Text(f"{part.similarity_by_chance:.3f}", "dim"),
                f"{part.in_place:.0%}",
                f"{block.function_change:.0e}"
                if first and block.function_change is not None
                else "",
                f"{block.effective_matches:.1f}"
                if part is spread and block.effective_matches
                else "",
                f"{block.cka:.2f}" if first and block.cka is not None else "",
                f"{ratios[len(ratios) // 2]:.2f}" if first and ratios else "",
            )
    legend = (
        "same: mean cosine of parts of the same index; match: of the best one-to-one match, at a "
        "transport cost of 1 - match; chance: the same for unrelated blocks; stay: share matched "
        "to its own index; moved: relative change of what the lower block computes once it is "
        "aligned (rounding stays far below 1e-3); spread: neurons that the entropic plan spreads "
        "one over; CKA: of what the blocks add; norm: row norms of the new block as a share of the "
        "upper block's."
    )
    return [table, Text(legend, "dim")]
