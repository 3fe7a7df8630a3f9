"""``deepen train``, ``evaluate``, ``compare``, ``report`` and ``demo``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepen.cli.options import (
    Device,
    Json,
    Model,
    Private,
    PushToHub,
    Revision,
    Seed,
    check_wish,
    fulfil_wish,
    show,
)
from deepen.common.errors import DeepenError

if TYPE_CHECKING:
    from deepen.training.recipe import Stage

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that win over the file: training.learning_rate=1e-4 …"),
]
NoResume = Annotated[
    bool, typer.Option("--no-resume", help="Delete an earlier run of this output and start anew.")
]


def cpt(
    recipe: RecipeFile,
    overrides: Overrides = None,
    no_resume: NoResume = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Continual pre-training; run again to resume, also under accelerate launch or torchrun."""
    _train(recipe, "cpt", overrides, no_resume, push_to_hub, private, as_json)


def sft(
    recipe: RecipeFile,
    overrides: Overrides = None,
    no_resume: NoResume = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Supervised fine-tuning; run again to resume, also under accelerate launch or torchrun."""
    _train(recipe, "sft", overrides, no_resume, push_to_hub, private, as_json)


def _train(
    file: Path,
    stage: "Stage",
    overrides: list[str] | None,
    no_resume: bool,
    push_to_hub: str | None,
    private: bool,
    as_json: bool,
) -> None:
    """Train one recipe; only the first process of a launcher prints and uploads."""
    from deepen.report import terminal
    from deepen.training import load_recipe
    from deepen.training import train as run
    from deepen.training.processes import rank
    from deepen.training.run_folder import RunFolder

    recipe = load_recipe(file, overrides or [])
    if rank() == 0:
        check_wish(push_to_hub, private)
    with terminal.progress_bar() as progress:
        record = run(recipe, stage, resume=not no_resume, progress=progress, tell=_tell)
    if rank() == 0:
        show(record, as_json, terminal.training)
        fulfil_wish(push_to_hub, private, RunFolder.of(recipe).model)


def _tell(sentence: str) -> None:
    """Say something to the person at the terminal, beside the record on stdout."""
    typer.echo(sentence, err=True)


def evaluate(
    model: Model,
    perplexity: Annotated[
        list[Path] | None, typer.Option("--perplexity", help="Text file; may be repeated.")
    ] = None,
    tasks: Annotated[
        str, typer.Option("--tasks", help="lm-evaluation-harness tasks, by commas; or `paper`.")
    ] = "",
    task_folder: Annotated[
        list[Path] | None, typer.Option("--task-folder", help="Folder of tasks of your own.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Examples of each task.")] = None,
    shots: Annotated[int, typer.Option("--shots", help="Examples in the prompt.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Tokens of each text file.")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", help="Tokens that the model sees at once.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Sequences at once.")] = 8,
    seed: Seed = 0,
    device: Device = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure loss on text files, and scores in tasks."""
    from deepen.evaluation.evaluate import evaluate as run
    from deepen.report import terminal

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names and not perplexity:
        raise DeepenError("There is nothing to evaluate: give --perplexity FILE or --tasks NAMES.")
    with terminal.progress_bar() as progress:
        record = run(
            model,
            revision=revision,
            perplexity=perplexity or (),
            tasks=names,
            task_folders=task_folder or (),
            max_tokens=max_tokens,
            sequence_length=sequence_length,
            batch_size=batch_size,
            limit=limit,
            shots=shots,
            seed=seed,
            device=device,
            progress=progress,
        )
    show(record, as_json, terminal.evaluation)


def compare(
    study: Annotated[Path, typer.Argument(help="The study, YAML.", show_default=False)],
    overrides: Overrides = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Arms at once, by default one per GPU, else 1.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods on one budget; run again to resume at the arm that was interrupted."""
    from deepen.comparison import compare as run
    from deepen.comparison import load_study
    from deepen.comparison.results import read_records
    from deepen.report import terminal

    given = load_study(study, overrides or [])
    with terminal.progress_bar() as progress:
        summary = run(given, jobs=jobs, progress=progress, tell=_tell)
    records = read_records(Path(given.output))
    show(summary, as_json, lambda shown: terminal.study(shown, records))


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Output folders of studies.", show_default=False)
    ],
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Also write every run as a line of this file.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pairs", help="Print this pair of arms, 'arm - other'; may be repeated."),
    ] = None,
) -> None:
    """Write a study as an HTML page and as Markdown; of several, print pairs of arms over all."""
    from deepen.report import report as run
    from deepen.report.studies import pooled_pairs, write_csv

    pooled = pooled_pairs(folders, pairs or []) if len(folders) > 1 or pairs else None
    if csv is not None:
        write_csv(folders, csv)
    typer.echo(run(folders[0]) if pooled is None else pooled)


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to keep everything.")] = Path("runs/demo"),
    fast: Annotated[bool, typer.Option("--fast", help="A first look, with two arms.")] = False,
) -> None:
    """Grow a pretrained base, teach it a new text, and compare with what else one would do."""
    from deepen.demo.run import demo as run

    run(folder, "fast" if fast else "full")
