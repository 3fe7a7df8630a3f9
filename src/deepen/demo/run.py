"""The demo from beginning to end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from deepen import methods
from deepen.demo.base import BaseRecord, base_tokens, cached_base
from deepen.demo.comparison import Setting, compare_base, compare_method
from deepen.demo.corpus import read_corpus
from deepen.demo.display import progress_bar, quiet_transformers
from deepen.demo.recipe import FULL, QUICK, Recipe
from deepen.demo.results import DemoResults, DemoRow, table
from deepen.demo.tokens import bytes_per_token, load_tokenizer
from deepen.methods.base import Progress
from deepen.records import versions

RESULTS = "results.json"


def demo(folder: Path, quick: bool = False, console: Console | None = None) -> list[DemoRow]:
    """Train a small base, grow it by every method, train each on, print one table.

    Everything lies in ``folder`` afterwards: the base, the grown and the trained checkpoints, and
    ``results.json``. A second run in the same folder takes the base from there.

    Args:
        folder: Where to work.
        quick: Run a miniature of the same path, in seconds.
        console: Where to print; by default the terminal.

    Returns:
        The rows of the table.

    Raises:
        DeepenError: The machine has no Python sources, or something else lies in the folder.
    """
    console, recipe = console or Console(), QUICK if quick else FULL
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers(), _threads(recipe.threads), progress_bar(console) as progress:
        results = _run(folder, recipe, console, progress)
    (folder / RESULTS).write_text(results.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _conclude(folder, results, console)
    return results.rows


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with that many CPU threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(folder: Path, recipe: Recipe, console: Console, progress: Progress) -> DemoResults:
    """Do all the work, telling of each part as it is finished."""
    started = time.perf_counter()
    progress("reading the standard library", 0.0)
    corpus = read_corpus(recipe.base.file_share, recipe.base.held_out_share)
    base, cached = cached_base(folder, recipe.base, corpus, progress)
    console.print(_told_base(base, cached))
    tokenizer = load_tokenizer(folder / "base")
    setting = Setting(
        folder=folder,
        recipe=recipe,
        tokens=base_tokens(folder / "base", recipe.base, corpus),
        token_bytes=bytes_per_token(tokenizer),
        tokenizer=tokenizer,
        progress=progress,
    )
    rows = compare_base(setting)
    console.print(_told(rows[-1]))
    for method in methods.names():
        rows.append(compare_method(setting, method))
        console.print(_told(rows[-1]))
    return DemoResults(
        recipe=recipe,
        base=base,
        base_was_cached=cached,
        rows=rows,
        threads=torch.get_num_threads(),
        versions=versions(),
        wall_seconds=time.perf_counter() - started,
    )


def _told_base(base: BaseRecord, cached: bool) -> str:
    """Tell how the base came about."""
    training = base.training
    how = "found, trained by an earlier run" if cached else "trained"
    return (
        f"base: {how} for {training.wall_seconds:.0f} s on {training.tokens:,} tokens of "
        f"{base.training_characters / 1e6:.1f} million characters of Python"
    )


def _told(row: DemoRow) -> str:
    """Tell of a finished row."""
    assert row.after is not None
    change = f"perplexity {row.before.perplexity:.2f} → {row.after.perplexity:.2f}"
    if row.grow_seconds is None:
        return f"{row.name}: {change}"
    return f"{row.name}: grown in {row.grow_seconds:.1f} s, verified, {change}"


def _conclude(folder: Path, results: DemoResults, console: Console) -> None:
    """Print the table, how to read it, and what to try next."""
    budget = results.rows[1].training
    assert budget is not None
    console.print()
    console.print(table(results.rows))
    console.print(
        f"\nPerplexity per token on {results.rows[0].before.tokens:,} tokens of held-out files. "
        f"Every model but the first was trained on the same {budget.tokens:,} tokens in the same "
        f"order; seconds are those of that training. The whole run took "
        f"{results.wall_seconds:.0f} s.",
        highlight=False,
    )
    notes = [f"{row.name}: {note}" for row in results.rows for note in row.notes]
    last = [
        *notes,
        "",
        f"Checkpoints: {folder}/base, {folder}/grown/*, {folder}/trained/*",
        "Try next:",
        f"  deepen inspect {folder}/grown/opt-deus",
        f"  deepen verify {folder}/base {folder}/grown/opt-deus",
    ]
    for line in last:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
