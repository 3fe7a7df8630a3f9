"""Find out which span of blocks, repeated without training, helps on a text; and whether any does.

RYS (dnhkng.github.io/posts/rys) repeats a span of a model's blocks, trains nothing, and reports
gains in tasks; what was chosen as the best of many on few questions is flattered by that. Here one
half of a text chooses, the other half confirms, and the chance of luck counts every span tried.
"""

import json
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.base.checkpoint import FolderSource
from deepen.base.identity import state_of
from deepen.base.model import Model, open_model
from deepen.common import device as devices
from deepen.common.bounded import read_text
from deepen.common.errors import DeepenError
from deepen.common.files import sync_file
from deepen.common.progress import Progress, Tell, silent, unheard
from deepen.common.settings import validate
from deepen.common.system import peak_resident_bytes, versions
from deepen.comparison.spans.grid import Cost, Grid, Span, check_budget, cost_of, grid_of
from deepen.comparison.spans.record import SCAN
from deepen.comparison.spans.sequences import Sequences, read_sequences
from deepen.comparison.spans.stack import Stack, opened
from deepen.comparison.spans.tasks import few_best, score_tasks
from deepen.comparison.spans.verdict import Finding, conclude
from deepen.evaluation import harness
from deepen.growth.preview import check_loads, config_of, lineage_of, resolve
from deepen.growth.staging import check_out, staged
from deepen.records.growth import BaseIdentity, GrowRequest
from deepen.records.scan import ScanRecord, ScanRequest, SpanTask

_TRIED = "deepen-spans.jsonl"
_BATCH = 8  # examples of a task in a forward pass
_BYTES = 2**26  # of what is written, at most

Losses = dict[Span, list[float]]


@dataclass(frozen=True)
class _Scan:
    """All that a scan needs, checked before anything runs."""

    base: Model
    """The model."""
    named: str
    """How it was named."""
    where: Any
    """The device."""
    request: ScanRequest
    """What was asked for."""
    grid: Grid
    """The spans."""
    text: Sequences
    """The text."""
    cost: Cost
    """What they cost."""
    tasks: harness.Tasks
    """Tasks, if some were asked for."""
    settings: harness.TaskSettings
    """How these are run."""

    @property
    def source(self) -> FolderSource:
        """The base's checkpoint."""
        assert isinstance(self.base.source, FolderSource)
        return self.base.source


def scan(
    model: str | Path,
    out: str | Path,
    *,
    calibration: str,
    budget: float | None = None,
    tasks: Sequence[str] = (),
    task_folders: Sequence[str | Path] = (),
    limit: int | None = None,
    revision: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
    tell: Tell = unheard,
    **how: Any,
) -> ScanRecord:
    """Score every span of a grid by the loss with it repeated, in float32; nothing is trained.

    Args:
        model: Checkpoint folder, hub id, or ``registry:NAME``.
        out: Folder to write scan.json to; it appears when it is whole.
        calibration: The text: a file in UTF-8, a file of documents, or ``registry:TEXT/PART``.
        budget: How much it may cost, in forward passes of the whole model; tasks not counted.
        tasks: Names of lm-evaluation-harness tasks, for the base and the few best spans.
        task_folders: Folders with task files of your own.
        limit: Use only the first examples of each task, so many.
        revision: Branch, tag or commit on the hub.
        device: Where to compute.
        overwrite: Replace an earlier scan at ``out``.
        resume: Continue a killed run.
        progress: Called with the stage and the finished share of it.
        tell: Called with what it costs, before it begins.
        **how: Fields of ``ScanRequest``.

    Raises:
        DeepenError: The model, the text, the request or the place is unusable, the scan costs more
            than it may, or the model computes no numbers; nothing is then written.
    """
    started, out = time.perf_counter(), Path(out)
    request = validate(ScanRequest, how, "the request")
    where = devices.choose(device)
    base = open_model(model, revision, quantised=True)
    assert isinstance(base.source, FolderSource)
    check_out(out, base.source.folder, overwrite=overwrite, marker=SCAN)
    chosen = _tasks(base, tasks, task_folders, limit, request.seed)
    grid = grid_of(base, request)
    _check_grows(base, grid.spans[0], request.times)
    text = read_sequences(base, calibration, request)
    cost = cost_of(base, grid.spans, request.times, request.sequence_length)
    tell(_told(grid, cost, text))
    check_budget(base, request, cost, budget, request.sequence_length)
    asked = _Scan(base, str(model), where, request, grid, text, cost, *chosen)
    again = {"resume": resume, "overwrite": overwrite, "resumable": True}
    with staged(out, _same(asked), _BYTES, **again) as folder:
        record = _run(asked, folder.parent / _TRIED, started, progress)
        written = f"{record.model_dump_json(indent=2)}\n"
        (folder / SCAN).write_text(written, encoding="utf-8", newline="\n")
    return record


def _same(asked: _Scan) -> dict[str, Any]:
    """Return what a killed run must have had in common with this one to be continued."""
    return {
        "scan": asked.request.model_dump(),
        "text": asked.text.sha256,
        "base": state_of(asked.source),
        "device": asked.where.type,
    }


def _run(asked: _Scan, file: Path, started: float, progress: Progress) -> ScanRecord:
    """Do what was asked for.

    Args:
        asked: That.
        file: Where to keep what is finished.
        started: When the run began.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The base computes no numbers, or a task cannot be run.
    """
    request, source, text = asked.request, asked.source, asked.text
    with opened(asked.base, text.tokens, asked.where) as stack:
        base_losses, losses = _losses(stack, asked, file, progress)
    finding = conclude(base_losses, losses, request.times, request.seed)
    scored: list[SpanTask] = []
    if asked.tasks.leaves:
        few, how = few_best(finding), (asked.tasks, asked.settings, asked.where, progress)
        scored = score_tasks(source, few, request.times, *how)
    return ScanRecord(
        base=BaseIdentity(
            name=source.name, revision=source.revision, fingerprint=source.fingerprint
        ),
        depth=asked.base.depth,
        request=request,
        text=text.name,
        text_sha256=text.sha256,
        tokens=text.predicted,
        base_losses=base_losses,
        left_out=asked.grid.left_out,
        left_out_because=asked.grid.because,
        **_found(finding),
        command=_command(asked.named, finding, request.times),
        tasks=scored,
        block_runs=asked.cost.block_runs,
        passes=round(asked.cost.passes, 3),
        device=asked.where.type,
        wall_seconds=time.perf_counter() - started,
        peak_bytes=peak_resident_bytes(),
        versions=versions() | (harness.versions() if scored else {}),
    )


def _tasks(
    base: Model,
    names: Sequence[str],
    folders: Sequence[str | Path],
    limit: int | None,
    seed: int,
) -> tuple[harness.Tasks, harness.TaskSettings]:
    """Find tasks and their data before anything runs.

    Raises:
        DeepenError: They cannot be had, or the base cannot be grown in memory.
    """
    if names and base.source.quantisation is not None:
        raise DeepenError(
            f"{base.source.name} is quantised, and tasks are run in float32 with a copy of it; "
            f"leave --tasks out, or give the unquantised checkpoint."
        )
    if limit is not None and limit < 1:
        raise DeepenError(f"limit must be at least 1, not {limit}.")
    settings = harness.TaskSettings(_BATCH, None, limit, 0, seed)
    return harness.load(names, folders), settings


def _told(grid: Grid, cost: Cost, text: Sequences) -> str:
    """Say what a scan costs."""
    sequences = len(text.tokens)
    left_out = f" ({grid.left_out} more are refused: {grid.because})" if grid.left_out else ""
    return (
        f"{len(grid.spans):,} spans{left_out} on {text.predicted:,} tokens in {sequences} "
        f"sequences: {cost.block_runs:,} blocks run, {cost.passes:.1f} passes of the whole model."
    )


def _check_grows(base: Model, span: Span, times: int) -> None:
    """Refuse what ``grow`` would refuse of any span, before anything runs."""
    options = {"span": str(span), "times": times, "trains": "nothing"}
    growth = resolve(base, GrowRequest(method="repeat", options=options, device="cpu"))
    check_loads(growth, config_of(growth, lineage_of(growth)))


def _losses(
    stack: Stack, asked: _Scan, file: Path, progress: Progress
) -> tuple[list[float], Losses]:
    """Return the losses of the base, and with every span repeated.

    Raises:
        DeepenError: The base computes no numbers.
    """
    spans, given = asked.grid.spans, asked.text.given
    base = stack.losses(stack.top, given)
    if not all(map(math.isfinite, base)):
        raise DeepenError(
            "The base computes no numbers on the text, so nothing can be held to it; give it a "
            "sound checkpoint."
        )
    known, found = _known(file), dict[Span, list[float]]()
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n")  # behind a line that a kill cut off
        for number, (span, compute) in enumerate(_each(stack, spans, asked.request.times)):
            progress("scanning spans", number / len(spans))
            found[span] = known.get(span) or stack.losses(compute(), given)
            if span not in known:
                stream.write(json.dumps([*span, found[span]]) + "\n")
                stream.flush()
    sync_file(file)
    progress("scanned spans", 1.0)
    return base, found


def _each(
    stack: Stack, spans: Sequence[Span], times: int
) -> Iterator[tuple[Span, Callable[[], Any]]]:
    """Yield every span with what computes the state on top of all blocks when it is repeated.

    Spans that end at one block are neighbours, and share the base's state above it: that is
    computed from the one before it, once.
    """
    state, above, depth = stack.bottom, 0, len(stack)
    for span in spans:

        def compute(span: Span = span) -> Any:  # noqa: ANN401 (a tensor)
            nonlocal state, above
            state, above = stack.run(state, range(above, span.last + 1)), span.last + 1
            again = [*range(span.first, span.last + 1)] * times
            return stack.run(state, [*again, *range(span.last + 1, depth)])

        yield span, compute


def _known(file: Path) -> Losses:
    """Read what a killed run had found; a line that it did not finish counts for nothing."""
    known: Losses = {}
    for line in read_text(file).splitlines() if file.is_file() else ():
        try:
            first, last, losses = json.loads(line)
        except ValueError:
            continue
        known[Span(first, last)] = losses
    return known


def _found(finding: Finding) -> dict[str, Any]:
    """Return the fields of a record that tell what was found."""
    return {
        "spans": finding.spans,
        "choice": finding.choice,
        "flips": finding.luck.flips,
        "exact": finding.luck.exact,
        "verdict": finding.verdict,
        "sentence": finding.sentence,
    }


def _command(model: str, finding: Finding, times: int) -> str:
    """Write what builds the model with the chosen span repeated."""
    span = Span(finding.choice.first, finding.choice.last)
    often = f" --set times={times}" if times > 1 else ""
    how = f"--method repeat --set span={span}{often} --set trains=nothing"
    return f"deepen grow {shlex.quote(model)} OUT {how}"
