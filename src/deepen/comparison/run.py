"""Run a study: every arm in a process of its own, records as they come."""

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

from deepen.common.errors import DeepenError
from deepen.common.files import write_whole
from deepen.common.progress import Progress, silent
from deepen.common.settings import read_yaml, write_yaml
from deepen.common.system import versions
from deepen.comparison.parallel.processes import Call, CallError, run_apart
from deepen.comparison.parallel.sharing import Environment, gpus, slots
from deepen.comparison.parallel.worker import run_arm_apart
from deepen.comparison.results import RECORDS, SUMMARY, read_records
from deepen.comparison.statistics import fine_tuned, paired_differences
from deepen.comparison.study import ARMS, Arm, Study, checked, difference
from deepen.records.study import ArmRecord, StudySummary

_STUDY = "study.yaml"
_ERROR = "error.txt"


def compare(
    study: Study,
    *,
    jobs: int | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda sentence: None,
) -> StudySummary:
    """Run every arm of a study with every seed, and compare them.

    Arms are started seed by seed, each in a fresh process, so that memory and random states are its
    own. What is recorded is not run again; the arms that were interrupted go on where they were.

    Args:
        study: The study.
        jobs: Arms at once, with an equal share of the threads each; by default one for each GPU,
            and one without.
        progress: Called with the arm and stage at hand and the finished share of it.
        tell: Called with a sentence for every finished arm.

    Returns:
        What is also written to ``summary.json``: differences of arms, paired by seed.

    Raises:
        DeepenError: The study cannot be run, its output holds a study that differs, or an arm
            failed; what is recorded is kept.
    """
    if jobs is not None and jobs < 1:
        raise DeepenError(f"jobs is {jobs}; at least one arm must run at once.")
    study = checked(study)
    folder = Path(study.output)
    _begin(study, folder)
    records = read_records(folder)
    wanted = [(arm, seed) for seed in study.seeds for arm in study.all_arms]
    done = {(record.arm, record.seed) for record in records}
    todo = [(arm, seed) for arm, seed in wanted if (arm.name, seed) not in done]
    count = len(wanted) - len(todo)
    with closing(_run_all(study, todo, jobs, progress)) as finished:
        for arm, seed, record in finished:
            records = _in_order(study, [*records, record])
            _save(study, folder, records)
            if study.keep == "records":
                shutil.rmtree(study.arm_folder(arm, seed))
            count += 1
            tell(f"{count} of {len(wanted)}: {_sentence(record)}")
    summary = _save(study, folder, records)
    if study.keep == "records":
        shutil.rmtree(folder / ARMS, ignore_errors=True)
    shutil.rmtree(folder / "tokens", ignore_errors=True)
    return summary


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


def _in_order(study: Study, records: Sequence[ArmRecord]) -> list[ArmRecord]:
    """Sort records as the study has them, whichever arm was first; those of other arms go last."""
    names = [arm.name for arm in study.all_arms]

    def place(record: ArmRecord) -> tuple[int, int]:
        if record.arm in names and record.seed in study.seeds:
            return study.seeds.index(record.seed), names.index(record.arm)
        return len(study.seeds), 0

    return sorted(records, key=place)


def _save(study: Study, folder: Path, records: Sequence[ArmRecord]) -> StudySummary:
    """Write all records, and what those of the study's own arms and seeds say together."""
    write_whole(folder / RECORDS, "".join(record.model_dump_json() + "\n" for record in records))
    names = [arm.name for arm in study.all_arms]
    own = [r for r in records if r.arm in names and r.seed in study.seeds]
    summary = StudySummary(
        study=study.model_dump(mode="json"),
        arms=names,
        roles={arm.name: study.role(arm) for arm in study.all_arms},
        seeds=study.seeds,
        differences=paired_differences(own, names),
        fine_tuned_differences=paired_differences(fine_tuned(own), names),
        versions=versions(),
    )
    write_whole(folder / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    return summary


def _sentence(record: ArmRecord) -> str:
    """Say in one line how a finished arm went."""
    loss = record.train.curve[-1].loss_nats_per_token
    texts = ", ".join(
        f"perplexity {before.token_perplexity:.3f} → {after.token_perplexity:.3f} on {after.file}"
        for before, after in zip(record.before.texts, record.after.texts, strict=True)
    )
    scores = texts or f"training loss {loss:.4f}"
    proof = "" if record.verification is None else "verified, "
    return f"{record.arm}, seed {record.seed}: {proof}{scores}, {record.train.wall_seconds:.0f} s"


def _run_all(
    study: Study, todo: Sequence[tuple[Arm, int]], jobs: int | None, progress: Progress
) -> Generator[tuple[Arm, int, ArmRecord]]:
    """Yield arms, seeds and records as they finish.

    Raises:
        DeepenError: An arm failed.
    """
    if not todo:
        return
    given, arms = study.model_dump_json(exclude_unset=True), study.all_arms
    pairs = {
        Call(f"{arm.name}, seed {seed}", run_arm_apart, (given, arms.index(arm), seed)): (arm, seed)
        for arm, seed in todo
    }
    try:
        for call, record in run_apart(list(pairs), _slots(jobs, len(todo)), progress):
            yield *pairs[call], ArmRecord.model_validate_json(record)
    except CallError as failed:
        raise DeepenError(_failure(study, failed, *pairs[failed.call])) from failed


def _slots(jobs: int | None, most: int) -> list[Environment]:
    """Share this machine out among at most that many arms."""
    import torch

    devices = gpus(torch.cuda.device_count())
    return slots(min(jobs or max(1, len(devices)), most), devices, torch.get_num_threads())


def _failure(study: Study, failed: CallError, arm: Arm, seed: int) -> str:
    """Say which arm failed and why, with the traceback in a file."""
    sentence = f"Arm {arm.name!r} with seed {seed} failed ({failed.reason})"
    if failed.details:
        file = study.arm_folder(arm, seed) / _ERROR
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(failed.details, encoding="utf-8")
        sentence += f", see {file}"
    return f"{sentence}; finished arms are kept, and the same command goes on from there."
