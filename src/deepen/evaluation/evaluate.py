"""Score a model: loss on text files, and tasks of lm-evaluation-harness."""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from deepen.base.checkpoint import FolderSource, positions_of
from deepen.base.hub import open_checkpoint
from deepen.base.memory import load_pretrained
from deepen.base.text import tokenizer_of
from deepen.common import device as devices
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.common.quiet import quiet_transformers
from deepen.common.system import versions
from deepen.evaluation import harness
from deepen.evaluation import perplexity as texts
from deepen.evaluation.trunk import Trunk, TrunkStates
from deepen.records.evaluation import EvalRecord, TaskScore, TextScore

LONGEST_DEFAULT = 2048
"""Tokens in a window of text, unless asked for or the model has fewer positions."""


def evaluate(
    model: str | Path,
    *,
    revision: str | None = None,
    perplexity: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
    task_folders: Sequence[str | Path] = (),
    max_tokens: int | None = None,
    sequence_length: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    device: str = "auto",
    trunk: TrunkStates | None = None,
    progress: Progress = silent,
) -> EvalRecord:
    """Measure a model's loss on text files and its scores in tasks.

    It computes in float32 on the CPU and in the stored dtype elsewhere.

    Args:
        model: Checkpoint folder or hub id.
        revision: Branch, tag or commit on the hub.
        perplexity: Text files, or files of rows with a document in the column ``text`` of each, or
            with chat rows, of which the answers count.
        tasks: Names of lm-evaluation-harness tasks, groups or tags; ``paper`` is the set of eight
            that the OpT-DeUS paper reports.
        task_folders: Folders with task files (YAML) of your own; they go before all others.
        max_tokens: Predict at most so many tokens of each text file.
        sequence_length: Tokens in a window of text, and of a chat at most; by default 2048 or as
            many as the model has positions; if given, tasks too see at most so many at once.
        batch_size: Sequences in a forward pass.
        limit: Use only the first examples of each task, so many.
        shots: Examples in the prompt of a task.
        seed: Seed of drawing these examples.
        device: Where to compute.
        trunk: Where states of the blocks at the bottom are kept for other models that have them,
            and how far up; losses are the same to the last bit.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The model, a file or a task is missing or cannot be used.
    """
    started = time.perf_counter()
    source = open_checkpoint(model, revision)
    length = _check(source, perplexity, tasks, sequence_length, batch_size, max_tokens)
    # What cannot be had is found out before weights are loaded.
    chosen = harness.load(tasks, task_folders)
    tokenizer = tokenizer_of(source)
    documents = [
        texts.read(Path(file), tokenizer, max_tokens, longest_chat=length) for file in perplexity
    ]
    module = _load(source, devices.choose(device))
    kept = Trunk.of(module, source, trunk, documents[0]) if trunk and documents else None
    scored = [_score(module, text, length, batch_size, kept, progress) for text in documents]
    settings = harness.TaskSettings(batch_size, sequence_length, limit, shots, seed)
    answered = harness.run(chosen, module, tokenizer, settings, progress)
    seconds = time.perf_counter() - started
    return _record(source, module, scored, answered, length, settings, seconds)


def _check(
    source: FolderSource,
    perplexity: Sequence[str | Path],
    tasks: Sequence[str],
    sequence_length: int | None,
    batch_size: int,
    max_tokens: int | None,
) -> int:
    """Look for requests that make no sense; return the length of a window of text."""
    if not perplexity and not tasks:
        raise DeepenError("There is nothing to evaluate; name a text file or a task.")
    numbers = {
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "max_tokens": max_tokens,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise DeepenError(f"{name} must be at least 1, not {number}.")
    positions = positions_of(source.config) or math.inf
    if sequence_length is not None and sequence_length > positions:
        raise DeepenError(
            f"sequence_length is {sequence_length}, but {source.name} has only {positions} "
            f"positions; ask for no more than that."
        )
    return sequence_length or int(min(positions, LONGEST_DEFAULT))


def _load(source: FolderSource, where: torch.device) -> Any:  # noqa: ANN401
    """Load the model's weights."""
    dtype = torch.float32 if where.type == "cpu" else "auto"
    with quiet_transformers():
        module = load_pretrained(source, dtype)
    return module.to(where).eval()


def _score(
    module: Any,  # noqa: ANN401 (a class of transformers)
    text: texts.Text,
    length: int,
    batch_size: int,
    trunk: Trunk | None,
    progress: Progress,
) -> TextScore:
    """Measure the loss on a text, above the trunk's states if there are some."""
    over = trunk.passed_by(module, text, length, batch_size) if trunk else nullcontext(None)
    with over as logits:
        return texts.score(module, text, length, batch_size, logits=logits, progress=progress)


def _record(
    source: FolderSource,
    module: Any,  # noqa: ANN401 (classes of transformers)
    scored: list[TextScore],
    answered: list[TaskScore],
    length: int,
    settings: harness.TaskSettings,
    wall_seconds: float,
) -> EvalRecord:
    """Say what was measured, with what and how."""
    return EvalRecord(
        model=source.name,
        fingerprint=source.fingerprint,
        texts=scored,
        tasks=answered,
        seed=settings.seed,
        device=module.device.type,
        dtype=str(module.dtype).removeprefix("torch."),
        sequence_length=length,
        batch_size=settings.batch_size,
        wall_seconds=wall_seconds,
        versions=versions() | (harness.versions() if answered else {}),
    )
