"""The demo from beginning to end, on the same stages as any study."""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from deepen.alignment.measure import align
from deepen.common.files import write_whole
from deepen.common.progress import Progress
from deepen.common.quiet import quiet_transformers
from deepen.comparison.results import read_records
from deepen.comparison.run import compare
from deepen.comparison.study import Study
from deepen.demo.recipe import FAST, FULL, PROTECTED, TINY, Trial
from deepen.demo.samples import continuation
from deepen.demo.starts import Start, Tell, pretrained, self_made
from deepen.demo.table import verdict
from deepen.growth.grow import grow
from deepen.records.alignment import AlignmentRecord
from deepen.records.growth import GrowRequest
from deepen.records.study import ArmRecord
from deepen.report import report, terminal
from deepen.verification.verify import verify

Size = Literal["full", "fast", "tiny"]
_NUMBERS = {"full": FULL, "fast": FAST, "tiny": TINY}
_SAMPLES = "samples.txt"
_SHOWN = "opt-deus"


def demo(folder: Path, size: Size = "full", console: Console | None = None) -> list[ArmRecord]:
    """Grow a base, prove it, and teach it and its alternatives a text that the base hardly knows.

    The base is a pretrained one of the Python registry, or without a registry a small one that is
    trained here. Everything lies in ``folder`` afterwards. A second run finds what is there, and a
    run that was killed goes on where it was.

    Args:
        folder: Where to work.
        size: The whole demo, a first look, or a miniature for tests.
        console: Where to print; by default the terminal.

    Returns:
        The study's records.

    Raises:
        DeepenError: There is neither a registry nor a Python with its own sources.
    """
    console, numbers, began = (
        console or Console(markup=False, emoji=False),
        _NUMBERS[size],
        time.perf_counter(),
    )

    def tell(sentence: str) -> None:
        console.print(sentence, highlight=False)

    with quiet_transformers(), terminal.progress_bar() as progress:
        start = pretrained(tell) if numbers.real else None
        trial = numbers.real if start and numbers.real else numbers.small
        start = start or self_made(folder, numbers.small_base, progress, tell)
        _grow(start, trial, folder, progress, tell)
        study = _study(start, trial, folder)
        compare(study, progress=progress, tell=tell)
        records = read_records(Path(study.output))
        samples = _samples(start, trial, study, folder)
        page = report(study.output)
    console.print()
    console.print(terminal.learned_and_forgotten(records))
    tell(f"\n{verdict(records)}\n\n{samples}")
    tell(f"\nThis run took {time.perf_counter() - began:.0f} s. Report: {page}")
    tell(f"Try next:\n  deepen inspect {folder}/grown --alignment\n  deepen plan {start.base}")
    return records


def _grow(start: Start, trial: Trial, folder: Path, progress: Progress, tell: Tell) -> None:
    """Grow the base once for itself, and say what is true of the result before any training."""
    out = folder / "grown"
    request = GrowRequest(method=_SHOWN, new_layers=trial.new_layers, placement="uniform")
    record = grow(start.base, out, request, overwrite=True, progress=progress)
    tell(
        f"grown     {record.base_depth} → {record.depth} blocks by {_SHOWN} in "
        f"{record.wall_seconds:.1f} s, +{record.new_parameters / record.base_parameters:.0%} "
        f"parameters"
    )
    proof = verify(start.base, out, progress=progress)
    failed = "" if proof.passed else " NOT"
    tell(
        f"verified  it computes{failed} what the base computes: max |Δlogit| = "
        f"{proof.max_abs_logit_difference} on {proof.tokens} tokens"
    )
    tell(f"aligned   {_alignment(align(out, progress=progress))}")


def _alignment(record: AlignmentRecord) -> str:
    """Say how well the parents of the new blocks align, beside what chance would give."""
    said = []
    for kind in ("neurons", "heads"):
        parts = [part for block in record.blocks for part in block.parts if part.part == kind]
        if parts:
            match = sum(part.similarity_after for part in parts) / len(parts)
            chance = sum(part.similarity_by_chance for part in parts) / len(parts)
            said.append(f"{kind} {match:.2f} (chance {chance:.2f})")
    return f"similarity of neighbouring blocks, matched one to one: {', '.join(said)}"


def _study(start: Start, trial: Trial, folder: Path) -> Study:
    """Return the study: every arm on one budget of FLOPs."""
    return Study.model_validate(
        {
            "title": f"Learning {start.new}",
            "base": start.base,
            "arms": [_protecting(arm, start.protected) for arm in trial.arms],
            "new_layers": trial.new_layers,
            "data": {"path": start.training, "sequence_length": trial.sequence_length},
            "budget": "flops",
            "training": {
                "max_steps": trial.steps,
                "batch_size": trial.sequences,
                "report_to": "none",
            },
            "evaluation": {
                "new": start.held_out,
                "old": start.kept,
                "max_tokens": trial.scored_tokens,
                "sequence_length": trial.sequence_length,
            },
            "keep": "models",
            "output": str(folder / "study"),
        }
    )


def _protecting(arm: dict[str, Any], old: str) -> dict[str, Any]:
    """Name the old text to the arm that protects it."""
    if arm["label"] != PROTECTED:
        return arm
    return arm | {"training": arm["training"] | {"protect": {"path": old, "max_tokens": 2048}}}


def _samples(start: Start, trial: Trial, study: Study, folder: Path) -> str:
    """Say what the base and trained models write; then let the arms' models go."""
    kept = folder / _SAMPLES
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    lines = [f"“{start.prompt} …” goes on:"]
    models: list[tuple[str, Path | str]] = [("before", start.base)]
    for arm in study.all_arms:
        if arm.name in ("base", _SHOWN):
            models.append((arm.name, study.arm_folder(arm, study.seeds[0]) / "cpt" / "model"))
    for name, model in models:
        lines.append(f"  {name:9} {continuation(model, start.prompt, trial.written_tokens)}")
    text = "\n".join(lines)
    write_whole(kept, text)
    for arm in study.all_arms:
        shutil.rmtree(study.arm_folder(arm, study.seeds[0]))
    return text
