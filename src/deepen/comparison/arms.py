"""One arm with one seed: grow, verify, align, score, train, score, fine-tune, score."""

from pathlib import Path

from deepen.alignment.measure import align
from deepen.common.errors import DeepenError
from deepen.common.files import write_whole
from deepen.common.progress import Progress
from deepen.comparison.study import BASE, Arm, EvaluationConfig, Study
from deepen.evaluation.evaluate import evaluate
from deepen.growth.grow import grow
from deepen.records.alignment import AlignmentRecord
from deepen.records.evaluation import EvalRecord
from deepen.records.growth import GrowRecord
from deepen.records.study import ArmRecord
from deepen.records.training import TrainRecord
from deepen.records.verification import VerifyRecord
from deepen.training.recipe import Stage
from deepen.training.run import train
from deepen.verification.verify import verify

_GROWN, _ALIGNED = "grown.json", "alignment.json"


def run_arm(study: Study, arm: Arm, seed: int, progress: Progress) -> ArmRecord:
    """Run one arm from beginning to end; what an interrupted run finished is found again.

    Args:
        study: The study.
        arm: One of its arms.
        seed: One of its seeds.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The base, the data, a text or a task cannot be used.
        RuntimeError: A grown model is not what it claims.
    """
    folder = study.arm_folder(arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    grown = _grow(study, arm, seed, folder, progress)
    model = study.base if grown is None else folder / "grown"
    verified = None if grown is None else _verify(study, folder, progress)
    aligned = None if grown is None else _align(study, grown, folder, progress)
    before = _score(study.evaluation, model, seed, folder / "before.json", progress)
    trained = _train(study, arm, seed, "cpt", model, folder, progress)
    model = folder / "cpt" / "model"
    after = _score(study.evaluation, model, seed, folder / "after.json", progress)
    tuned = after_tuning = None
    if study.fine_tuning is not None:
        tuned = _train(study, arm, seed, "sft", model, folder, progress)
        model, kept = folder / "sft" / "model", folder / "after-fine-tuning.json"
        after_tuning = _score(study.evaluation, model, seed, kept, progress)
    return ArmRecord(
        arm=arm.name,
        role=study.role(arm),
        method=arm.method,
        placement=arm.placement,
        seed=seed,
        grow=grown,
        verification=verified,
        alignment=aligned,
        before=before,
        train=trained,
        after=after,
        fine_tuning=tuned,
        after_fine_tuning=after_tuning,
    )


def _grow(study: Study, arm: Arm, seed: int, folder: Path, progress: Progress) -> GrowRecord | None:
    """Grow the arm's model; ``None`` for the base."""
    if arm.method == BASE:
        return None
    kept = folder / _GROWN
    if kept.is_file():
        return GrowRecord.model_validate_json(kept.read_text(encoding="utf-8"))
    record = grow(
        study.base,
        folder / "grown",
        arm.request(study, seed),
        overwrite=True,
        progress=progress,
    )
    write_whole(kept, record.model_dump_json())
    return record


def _verify(study: Study, folder: Path, progress: Progress) -> VerifyRecord:
    """Prove what the arm's model claims, before anything is spent on it."""
    record = verify(study.base, folder / "grown", progress=progress)
    if not record.passed:
        failed = "; ".join(f"{c.name}: {c.detail}" for c in record.checks if not c.passed)
        raise RuntimeError(f"{folder / 'grown'} did not pass verification ({failed})")
    return record


def _align(
    study: Study, grown: GrowRecord, folder: Path, progress: Progress
) -> AlignmentRecord | None:
    """Measure how well the parents of the new blocks align; ``None`` where none were fused."""
    parents = [entry for entry in grown.step.plan if isinstance(entry, list)]
    if not study.alignment or all(below == above for below, above, _ in parents):
        return None
    kept, model, text = folder / _ALIGNED, folder / "grown", study.evaluation.calibration
    if kept.is_file():
        return AlignmentRecord.model_validate_json(kept.read_text(encoding="utf-8"))
    try:
        record = align(model, calibration=text, progress=progress)
    except DeepenError:
        if text is None:
            raise
        # A text may be too short to calibrate with and still be scored.
        record = align(model, progress=progress)
    write_whole(kept, record.model_dump_json())
    return record


def _score(
    config: EvaluationConfig, model: Path | str, seed: int, kept: Path, progress: Progress
) -> EvalRecord:
    """Evaluate a model, unless an interrupted run has."""
    if kept.is_file():
        return EvalRecord.model_validate_json(kept.read_text(encoding="utf-8"))
    settings = config.model_dump(exclude={"perplexity"})
    record = evaluate(model, perplexity=config.files, seed=seed, progress=progress, **settings)
    write_whole(kept, record.model_dump_json())
    return record


def _train(
    study: Study,
    arm: Arm,
    seed: int,
    stage: Stage,
    model: Path | str,
    folder: Path,
    progress: Progress,
) -> TrainRecord:
    """Train one stage; it resumes by itself."""
    return train(study.recipe(arm, seed, stage, model, folder / stage), stage, progress=progress)
