"""Run a study: choose learning rates, then every arm in a process of its own."""

import json
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from deepen.common.errors import DeepenError
from deepen.common.files import make_folders, write_whole
from deepen.common.lock import locked
from deepen.common.progress import Progress, silent
from deepen.common.settings import read_yaml, write_yaml
from deepen.common.system import versions
from deepen.comparison.arm import Arm
from deepen.comparison.arms import SCORES
from deepen.comparison.balance import front, paired_differences
from deepen.comparison.parallel.processes import Call, CallError, run_apart
from deepen.comparison.parallel.sharing import Environment, gpus, slots
from deepen.comparison.parallel.worker import run_arm_apart, search_apart
from deepen.comparison.rates import SEARCH, best_rate, searched
from deepen.comparison.results import RATES, RECORDS, SUMMARY, read_rates, read_records
from deepen.comparison.settle import check_texts, settle
from deepen.comparison.statistics import fine_tuned
from deepen.comparison.study import ARMS, Study, checked, difference
from deepen.records.study import ArmRecord, StudySummary
from deepen.training.recipe import Stage

_STUDY = "study.yaml"
_ERROR = "error.txt"
_RATE: Mapping[Stage, str] = {"cpt": "learning rate", "sft": "learning rate of fine-tuning"}


def compare(
    study: Study,
    *,
    jobs: int | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda sentence: None,
) -> StudySummary:
    """Run every arm of a study with every seed, and compare them.

    Learning rates come first, where the study has them chosen, arm by arm. Then arms are started
    seed by seed, each in a fresh process, so that memory and random states are its own. What is
    recorded is not run again; the arms that were interrupted go on where they were.

    Args:
        study: The study.
        jobs: Arms at once, with an equal share of the threads each; by default one for each GPU,
            and one without.
        progress: Called with the arm and stage at hand and the finished share of it.
        tell: Called with a sentence for every finished arm.

    Returns:
        What is also written to ``summary.json``: differences of arms, paired by seed.

    Raises:
        DeepenError: The study cannot be run, its output holds a study that differs or is being
            written by another process, or an arm failed; what is recorded is kept.
    """
    if jobs is not None and jobs < 1:
        raise DeepenError(f"jobs is {jobs}; at least one arm must run at once.")
    study = settle(checked(study))
    check_texts(study)
    with locked(Path(study.output)), _kept_told(study):
        return _compare(study, jobs, progress, tell)


@contextmanager
def _kept_told(study: Study) -> Iterator[None]:
    """Note on whatever ends a study early, bad input apart, what is kept of it."""
    try:
        yield
    except DeepenError:
        raise
    except BaseException as error:
        file = Path(study.output) / RECORDS
        lines = file.read_bytes().count(b"\n") if file.is_file() else 0
        error.add_note(
            f"{lines} of {len(study.all_arms) * len(study.seeds)} runs are recorded, and the same "
            f"command goes on from there, an arm under way from its last checkpoint"
        )
        raise


def _compare(
    study: Study, jobs: int | None, progress: Progress, tell: Callable[[str], None]
) -> StudySummary:
    """Run a study that was checked; see ``compare``."""
    folder = Path(study.output)
    _begin(study, folder)
    records = read_records(folder)
    wanted = [(arm, seed) for seed in study.seeds for arm in study.all_arms]
    done = {(record.arm, record.seed) for record in records}
    todo = [(arm, seed) for arm, seed in wanted if (arm.name, seed) not in done]
    arms, chosen = [arm for arm, _ in todo], dict[Stage, dict[str, float]]()
    for stage in _RATE:
        chosen[stage] = _choose_rates(study, stage, arms, chosen, jobs, progress, tell)
    count = len(wanted) - len(todo)
    with closing(_run_all(study, todo, chosen, jobs, progress)) as finished:
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
    for name in ("tokens", SCORES, SEARCH):
        shutil.rmtree(folder / name, ignore_errors=True)
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
    make_folders(folder)
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
        rates={arm: tried for arm, tried in read_rates(folder).items() if arm in names},
        fine_tuning_rates={
            arm: tried for arm, tried in read_rates(folder, "sft").items() if arm in names
        },
        seeds=study.seeds,
        differences=paired_differences(own, names),
        fine_tuned_differences=paired_differences(fine_tuned(own), names),
        front=front(own, names),
        fine_tuned_front=front(fine_tuned(own), names),
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


def _choose_rates(
    study: Study,
    stage: Stage,
    arms: Sequence[Arm],
    before: Mapping[Stage, Mapping[str, float]],
    jobs: int | None,
    progress: Progress,
    tell: Callable[[str], None],
) -> dict[str, float]:
    """Return a stage's learning rate for every arm that is searched; the rest has its own.

    Args:
        study: The study.
        stage: The stage.
        arms: The arms that are to run.
        before: The rates of earlier stages.
        jobs: As in ``compare``.
        progress: As in ``compare``.
        tell: As in ``compare``.

    Raises:
        DeepenError: A search failed, or an arm diverged at every rate.
    """
    if study.rate_search(stage) is None:
        return {}
    folder, known = Path(study.output), read_rates(Path(study.output), stage)
    todo = {a.name: a for a in arms if searched(study, a, stage) and a.name not in known}
    given, places = study.model_dump_json(exclude_unset=True), study.all_arms
    calls: dict[Call, Arm] = {}
    for name, arm in todo.items():
        arguments = (given, places.index(arm), stage, before.get("cpt", {}).get(name))
        calls[Call(f"{name}, {_RATE[stage]}", search_apart, arguments)] = arm
    for call, found in _apart(study, calls, jobs, progress):
        name, tried = calls[call].name, json.loads(found)
        known = read_rates(folder, stage) | {name: tried}
        write_whole(folder / RATES[stage], json.dumps(known, indent=2) + "\n")
        tell(f"{name}: {_tried(tried)}{' after fine-tuning' if stage == 'sft' else ''}")
    return {arm.name: _best(arm.name, known[arm.name]) for arm in arms if arm.name in known}


def _tried(losses: dict[str, float | None]) -> str:
    """Say in one line what a search found."""
    sorted_losses = sorted((float(rate), loss) for rate, loss in losses.items())
    shown = ("diverged" if loss is None else f"{loss:.4f}" for _, loss in sorted_losses)
    told = (f"{text} at {rate:g}" for text, (rate, _) in zip(shown, sorted_losses, strict=True))
    return f"loss {', '.join(told)}"


def _best(arm: str, losses: dict[str, float | None]) -> float:
    """Return the rate that an arm trains at.

    Raises:
        DeepenError: It diverged at every rate.
    """
    rate = best_rate({float(rate): loss for rate, loss in losses.items()})
    if rate is None:
        raise DeepenError(
            f"Arm {arm!r} diverged at every learning rate that was tried; give lower ones as a "
            f"grid, or the arm rates of its own, in another output."
        )
    return rate


def _run_all(
    study: Study,
    todo: Sequence[tuple[Arm, int]],
    chosen: Mapping[Stage, Mapping[str, float]],
    jobs: int | None,
    progress: Progress,
) -> Generator[tuple[Arm, int, ArmRecord]]:
    """Yield arms, seeds and records as they finish.

    Raises:
        DeepenError: An arm failed.
    """
    given, arms = study.model_dump_json(exclude_unset=True), study.all_arms
    calls: dict[Call, Arm] = {}
    for arm, seed in todo:
        rates = {stage: of[arm.name] for stage, of in chosen.items() if arm.name in of}
        arguments = (given, arms.index(arm), seed, json.dumps(rates))
        calls[Call(f"{arm.name}, seed {seed}", run_arm_apart, arguments)] = arm
    for call, record in _apart(study, calls, jobs, progress):
        found = ArmRecord.model_validate_json(record)
        yield calls[call], found.seed, found


def _apart(
    study: Study, calls: dict[Call, Arm], jobs: int | None, progress: Progress
) -> Generator[tuple[Call, str]]:
    """Make calls in processes of their own.

    Raises:
        DeepenError: One failed.
    """
    if not calls:
        return
    try:
        yield from run_apart(list(calls), _slots(jobs, len(calls)), progress)
    except CallError as failed:
        raise DeepenError(_failure(study, calls[failed.call], failed)) from failed


def _slots(jobs: int | None, most: int) -> list[Environment]:
    """Share this machine out among at most that many arms."""
    import torch

    devices = gpus(torch.cuda.device_count())
    return slots(min(jobs or max(1, len(devices)), most), devices, torch.get_num_threads())


def _failure(study: Study, arm: Arm, failed: CallError) -> str:
    """Say what failed and why, with the traceback in a file."""
    sentence = f"Arm {failed.call.name} failed ({failed.reason})"
    if failed.details:
        file = Path(study.output) / ARMS / arm.folder / _ERROR
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(failed.details, encoding="utf-8")
        sentence += f", see {file}"
    return f"{sentence}; finished arms are kept, and the same command goes on from there."
