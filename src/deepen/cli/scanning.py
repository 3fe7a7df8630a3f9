"""``deepen scan``."""

from pathlib import Path
from typing import Annotated

import typer

from deepen.cli.options import Device, Json, Model, Out, Overwrite, Revision, Seed, show

Calibration = Annotated[
    str,
    typer.Option(
        "--calibration",
        metavar="TEXT",
        help="The text: a file, or registry:TEXT/PART.",
        show_default=False,
    ),
]
Longest = Annotated[int, typer.Option("--longest", help="Blocks of the longest span.")]
Stride = Annotated[
    int, typer.Option("--stride", help="Spans begin and end at multiples of so many blocks.")
]
Times = Annotated[int, typer.Option("--times", help="How often a span is repeated.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Tokens of the text that are read.")]
SequenceLength = Annotated[int, typer.Option("--sequence-length", help="Tokens in a sequence.")]
Budget = Annotated[
    float | None,
    typer.Option("--budget", help="Most passes of the whole model.", show_default=False),
]
TaskNames = Annotated[
    str, typer.Option("--tasks", help="Tasks, by commas, for the base and the best spans.")
]
TaskFolders = Annotated[
    list[Path] | None, typer.Option("--task-folder", help="Folder of tasks of your own.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Examples of each task.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a killed run.")]


def scan(
    model: Model,
    out: Out,
    calibration: Calibration,
    longest: Longest = 8,
    stride: Stride = 1,
    times: Times = 1,
    max_tokens: MaxTokens = 4096,
    sequence_length: SequenceLength = 128,
    budget: Budget = None,
    tasks: TaskNames = "",
    task_folder: TaskFolders = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = "auto",
    revision: Revision = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Find the span of blocks that helps most on a text when it is repeated without training."""
    from deepen.comparison.spans.scan import scan as run
    from deepen.report import terminal
    from deepen.report.spans.terminal import scanned

    with terminal.progress_bar() as progress:
        record = run(
            model,
            out,
            calibration=calibration,
            longest=longest,
            stride=stride,
            times=times,
            max_tokens=max_tokens,
            sequence_length=sequence_length,
            budget=budget,
            tasks=[name.strip() for name in tasks.split(",") if name.strip()],
            task_folders=task_folder or (),
            limit=limit,
            seed=seed,
            device=device,
            revision=revision,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            tell=lambda said: typer.echo(said, err=True),
        )
    show(record, as_json, scanned)
