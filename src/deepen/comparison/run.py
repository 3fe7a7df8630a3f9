"""Run a study: every arm in a process of its own, records as they come."""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepen.comparison.aggregate import fine_tuned, paired_differences
from deepen.comparison.study import Arm, Study, checked, difference
from deepen.errors import DeepenError
from deepen.methods.base import Progress, silent
from deepen.records import versions
from deepen.results import ArmRecord, StudySummary
from deepen.settings import read_yaml, write_yaml

RECORDS = "records.jsonl"
SUMMARY = "summary.json"
_STUDY = "study.yaml"


def compare(
    study: Study,
    *,
    jobs: int | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda sentence: None,
) -> StudySummary:
    """Run every arm of a study with every seed, and compare them.

    Arms run seed by seed, each in a fresh process, so that memory and random states are its own.
    What is recorded is not run again; the arm that was interrupted goes on where it was.

    Args:
        study: The study.
        jobs: Arms at once; by default one for each GPU, and one without.
        progress: Called with the arm and stage at hand and the finished share of it.
        tell: Called with a sentence for every finished arm.

    Returns:
        What is also written to ``summary.json``: differences of arms, paired by seed.

    Raises:
        DeepenError: The study cannot be run, or its output holds a study that differs.
    """
    study = checked(study)
    folder = Path(study.output)
    _begin(study, folder)
    names = [arm.name for arm in study.all_arms]
    records = [r for r in read_records(folder) if r.arm in names and r.seed in study.seeds]
    done = {(record.arm, record.seed) for record in records}
    todo = [(a, s) for s in study.seeds for a in study.all_arms if (a.name, s) not in done]
    for record in _run_all(study, todo, jobs, progress):
        records.append(record)
        _append(folder / RECORDS, record)
        tell(f"{len(records)} of {len(names) * len(study.seeds)}: {_told(record)}")
    order = {name: index for index, name in enumerate(names)}
    records.sort(key=lambda record: (record.seed, order[record.arm]))
    summary = StudySummary(
        study=study.model_dump(mode="json"),
        arms=names,
        seeds=study.seeds,
        differences=paired_differences(records, names),
        fine_tuned_differences=paired_differences(fine_tuned(records), names),
        versions=versions(),
    )
    _write(folder / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    if study.keep == "records":
        shutil.rmtree(folder / "arms", ignore_errors=True)
    shutil.rmtree(folder / "tokens", ignore_errors=True)
    return summary


def read_records(folder: Path) -> list[ArmRecord]:
    """Read the records of a study's folder.

    Raises:
        DeepenError: A line is not a record that this version wrote.
    """
    file = folder / RECORDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    try:
        return [ArmRecord.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise DeepenError(
            f"{str(file)!r} holds a line that is no record of this version "
            f"({error.errors()[0]['msg']}); give the study another output."
        ) from None


def _begin(study: Study, folder: Path) -> None:
    """Note the study in its folder, unless another one is there."""
    tree, file = study.model_dump(mode="json"), folder / _STUDY
    if file.is_file():
        differs = difference(read_yaml(file), tree)
        if differs is not None:
            raise DeepenError(
                f"{str(folder)!r} holds a study with another {differs}; "
                f"give this one another output, or delete that folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(file, tree)


def _append(file: Path, record: ArmRecord) -> None:
    """Add a line, or leave the file as it was."""
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    _write(file, before + record.model_dump_json() + "\n")


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _told(record: ArmRecord) -> str:
    """Tell of a finished arm."""
    loss = record.train.curve[-1].loss_nats_per_token
    texts = ", ".join(
        f"perplexity {before.token_perplexity:.3f} → {after.token_perplexity:.3f} on {after.file}"
        for before, after in zip(record.before.texts, record.after.texts, strict=True)
    )
    found = texts or f"training loss {loss:.4f}"
    proven = "" if record.verification is None else "verified, "
    return f"{record.arm}, seed {record.seed}: {proven}{found}, {record.train.wall_seconds:.0f} s"


def _run_all(
    study: Study, todo: Sequence[tuple[Arm, int]], jobs: int | None, progress: Progress
) -> Iterator[ArmRecord]:
    """Yield the records of arms as they finish."""
    if not todo:
        return
    devices = _devices()
    with _pool(jobs or max(1, len(devices)), devices) as (pool, messages):
        waiting: set[Future[ArmRecord]] = {pool.submit(_work, study, *pair) for pair in todo}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                while not messages.empty():
                    progress(*messages.get())
                for future in finished:
                    yield future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            for process in list(pool._processes.values()):  # an arm may have hours to go
                process.terminate()
            raise


@contextmanager
def _pool(jobs: int, devices: list[int]) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Open a pool of fresh processes, and the queue through which they tell of progress."""
    context = multiprocessing.get_context("spawn")
    messages, free = context.Queue(), context.Queue()
    for device in devices:
        free.put(device)
    with ProcessPoolExecutor(
        jobs,
        mp_context=context,
        initializer=_start,
        initargs=(messages, free if devices else None),
        max_tasks_per_child=1,
    ) as pool:
        yield pool, messages


def _devices() -> list[int]:
    """List the GPUs."""
    import torch

    return list(range(torch.cuda.device_count()))


_messages: Any = None
_free: Any = None


def _start(messages: Any, free: Any) -> None:  # noqa: ANN401 (queues have no public type)
    """Remember the queues, in a fresh process."""
    global _messages, _free
    _messages, _free = messages, free


def _work(study: Study, arm: Arm, seed: int) -> ArmRecord:
    """Run one arm in this process, on a GPU of its own if there are any."""
    from deepen.comparison.arms import run_arm

    device = _free.get() if _free is not None else None
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    try:
        prefix = f"{arm.name}, seed {seed}"
        return run_arm(study, arm, seed, lambda stage, share: _report(f"{prefix}: {stage}", share))
    finally:
        if device is not None:
            _free.put(device)


def _report(stage: str, share: float) -> None:
    """Tell the parent of progress."""
    _messages.put((stage, share))
