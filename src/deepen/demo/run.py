"""The demo from beginning to end, on the same stages as any study."""

import time
from pathlib import Path
from typing import Literal

from rich.console import Console

from deepen.common.quiet import quiet_transformers
from deepen.comparison.results import read_records
from deepen.comparison.run import compare
from deepen.comparison.study import Study
from deepen.demo.corpus import read_corpus
from deepen.demo.material import Material, prepare
from deepen.demo.questions import TASK
from deepen.demo.recipe import FAST, FULL, TINY, Budget, DemoRecipe
from deepen.records.study import ArmRecord
from deepen.records.training import TrainRecord
from deepen.report import report, terminal
from deepen.training.recipe import Recipe
from deepen.training.run import train

Size = Literal["full", "fast", "tiny"]
_RECIPES = {"full": FULL, "fast": FAST, "tiny": TINY}


def demo(folder: Path, size: Size = "full", console: Console | None = None) -> list[ArmRecord]:
    """Train a small base, grow it by every method, train every arm alike, score, report.

    Everything lies in ``folder`` afterwards. A second run finds the base, and a run that was
    killed goes on where it was.

    Args:
        folder: Where to work.
        size: The whole demo, a first look, or a miniature for tests.
        console: Where to print; by default the terminal.

    Returns:
        The study's records.

    Raises:
        DeepenError: The machine has no Python sources.
    """
    console, recipe, started = console or Console(), _RECIPES[size], time.perf_counter()

    def tell(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False)

    with quiet_transformers(), terminal.progress_bar() as progress:
        corpus = read_corpus(recipe.file_share, recipe.held_out_share)
        material = prepare(folder / "material", recipe, corpus, progress)
        base = train(_base_recipe(recipe, material, folder), "cpt", progress=progress)
        tell(_sentence(base, corpus.characters))
        study = _study(recipe, material, folder)
        compare(study, progress=progress, tell=tell)
        page = report(study.output)
    records = read_records(Path(study.output))
    console.print()
    console.print(terminal.arms(records))
    questions = records[0].after.tasks[0].samples
    tell(
        f"Perplexity on held-out files before, after pre-training, and after fine-tuning (tuned); "
        f"correct answers to {questions} questions which docstring belongs to a function (chance "
        f"is 25 %). Every arm was trained on the same tokens in the same order; s are the seconds "
        f"of pre-training. This run took {time.perf_counter() - started:.0f} s."
    )
    tell(f"\nReport: {page}\nTry next:\n  deepen plan {folder}/base/model\n  deepen methods")
    return records


def _section(budget: Budget, **more: object) -> dict[str, object]:
    """Return the ``training`` section of a recipe."""
    return {
        "max_steps": budget.steps,
        "batch_size": budget.sequences,
        "learning_rate": budget.learning_rate,
        "report_to": "none",
        **more,
    }


def _base_recipe(recipe: DemoRecipe, material: Material, folder: Path) -> Recipe:
    """Return what the base is trained with, from random weights."""
    return Recipe.model_validate(
        {
            "model": str(material.untrained),
            "data": {"path": str(material.training), "sequence_length": recipe.sequence_length},
            "training": _section(recipe.base, trains="everything", log_every=20),
            "seed": 1000,  # of no arm, so that arms do not begin with the same sequences
            "output": str(folder / "base"),
        }
    )


def _study(recipe: DemoRecipe, material: Material, folder: Path) -> Study:
    """Return the study: every method and the un-grown base, on one budget."""
    length = recipe.sequence_length
    return Study.model_validate(
        {
            "base": str(folder / "base" / "model"),
            "arms": recipe.arms,
            "new_layers": recipe.new_layers,
            "seeds": recipe.seeds,
            "data": {"path": str(material.training), "sequence_length": length},
            "training": _section(recipe.continued),
            "fine_tuning": {
                "data": {"path": str(material.rows), "sequence_length": length},
                "training": _section(recipe.fine_tuning),
            },
            "evaluation": {
                "perplexity": str(material.held_out),
                "max_tokens": recipe.scored_tokens,
                "tasks": [TASK],
                "task_folders": [str(material.tasks)],
            },
            "output": str(folder / "study"),
        }
    )


def _sentence(base: TrainRecord, characters: int) -> str:
    """Say how the base came about."""
    loss = base.curve[-1].loss_nats_per_token
    return (
        f"base: {base.parameters:,} parameters, trained for {base.wall_seconds:.0f} s on "
        f"{base.tokens:,} tokens of {characters / 1e6:.1f} million characters of Python, "
        f"loss {loss:.3f}"
    )
