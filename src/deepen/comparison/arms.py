"""One arm with one seed: make its model, align, score, train, score, fine-tune, score."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deepen.alignment.measure import align
from deepen.base.hub import open_checkpoint
from deepen.common.errors import DeepenError
from deepen.common.files import make_folders, write_whole
from deepen.common.progress import Progress
from deepen.comparison.arm import Arm
from deepen.comparison.making import REMEDY, Made, make
from deepen.comparison.study import EvaluationConfig, Study
from deepen.evaluation.evaluate import evaluate
from deepen.evaluation.trunk import TrunkStates
from deepen.records.alignment import AlignmentRecord
from deepen.records.evaluation import EvalRecord
from deepen.records.growth import GrowRecord
from deepen.records.record import read_record
from deepen.records.study import ArmRecord
from deepen.records.training import TrainRecord
from deepen.training.recipe import Stage
from deepen.training.run import train

_ALIGNED = "alignment.json"
SCORES = "scores"
"""Name of the folder that holds what models scored before training, which arms and seeds share."""


def run_arm(
    study: Study,
    arm: Arm,
    seed: int,
    progress: Progress,
    rates: Mapping[Stage, float] = MappingProxyType({}),
) -> ArmRecord:
    """Run one arm from beginning to end; what an interrupted run finished is found again.

    Args:
        study: The study, settled.
        arm: One of its arms.
        seed: One of its seeds.
        progress: Called with the stage and the finished share of it.
        rates: The learning rates that were chosen for it, by stage.

    Raises:
        DeepenError: The base, the data, a text or a task cannot be used.
        RuntimeError: A grown model is not what it claims.
    """
    folder = study.arm_folder(arm, seed)
    make_folders(folder)
    made = make(study, arm, seed, folder, progress)
    aligned = None if made.grow is None else _align(study, made.grow, folder, progress)
    before = _before(study, made, seed, progress)
    trained = _train(study, arm, seed, "cpt", made.model, folder, progress, rates)
    model = folder / "cpt" / "model"
    kept, trunk = folder / "after.json", trunk_below(study, trained)
    after = _score(study.evaluation, model, seed, kept, progress, trunk)
    tuned = after_tuning = None
    if study.fine_tuning is not None:
        tuned = _train(study, arm, seed, "sft", model, folder, progress, rates)
        model, kept = folder / "sft" / "model", folder / "after-fine-tuning.json"
        trunk = trunk_below(study, trained, tuned)
        after_tuning = _score(study.evaluation, model, seed, kept, progress, trunk)
    return ArmRecord(
        arm=arm.name,
        role=study.role(arm),
        method=arm.method,
        placement=arm.placement,
        seed=seed,
        grow=made.grow,
        verification=made.verification,
        alignment=aligned,
        before=before,
        train=trained,
        after=after,
        fine_tuning=tuned,
        after_fine_tuning=after_tuning,
    )


def _before(study: Study, made: Made, seed: int, progress: Progress) -> EvalRecord:
    """Score an arm's model before training, once for all arms and seeds that begin with it.

    A model that was proven to compute what the base does has the base's scores.
    """
    source = open_checkpoint(made.model)
    base = open_checkpoint(study.base)
    scored, where = (base, study.base) if made.is_base_s_function else (source, made.model)
    # Without tasks nothing about a score is random.
    draws = seed if study.evaluation.sides_of_tasks else None
    key = hashlib.sha256(json.dumps([scored.fingerprint, draws]).encode()).hexdigest()[:16]
    kept = Path(study.output) / SCORES / f"{key}.json"
    make_folders(kept.parent)
    record = _score(study.evaluation, where, seed, kept, progress)
    own = {"model": source.name, "fingerprint": source.fingerprint, "seed": seed}
    return record.model_copy(update=own)


def _align(
    study: Study, grown: GrowRecord, folder: Path, progress: Progress
) -> AlignmentRecord | None:
    """Measure how well the parents of the new blocks align; ``None`` where none were fused."""
    parents = [entry for entry in grown.step.plan if isinstance(entry, list)]
    if not study.alignment or all(below == above for below, above, _ in parents):
        return None
    kept, model, text = folder / _ALIGNED, folder / "grown", study.evaluation.calibration
    if kept.is_file():
        return read_record(AlignmentRecord, kept, REMEDY)
    try:
        record = align(model, calibration=text, progress=progress)
    except DeepenError:
        if text is None:
            raise
        # A text may be too short to calibrate with and still be scored.
        record = align(model, progress=progress)
    write_whole(kept, record.model_dump_json())
    return record


def trunk_below(study: Study, *trained: TrainRecord) -> TrunkStates | None:
    """Say which blocks of a trained model other arms may have in common, and where states are kept.

    Args:
        study: The study.
        trained: How the model was trained, stage by stage.
    """
    if study.training.trunk_cache is False:
        return None
    lowest = min(min(record.trainable_blocks, default=0) for record in trained)
    return TrunkStates(Path(study.output) / "tokens" / "scored", lowest)


def _score(
    config: EvaluationConfig,
    model: Path | str,
    seed: int,
    kept: Path,
    progress: Progress,
    trunk: TrunkStates | None = None,
) -> EvalRecord:
    """Evaluate a model, unless an interrupted run has."""
    if kept.is_file():
        return read_record(EvalRecord, kept, REMEDY)
    sides = config.sides_of_tasks
    record = evaluate(
        model,
        perplexity=[file for file, _ in config.texts],
        tasks=list(sides),
        task_folders=config.task_folders,
        max_tokens=config.max_tokens,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        limit=config.limit,
        shots=config.shots,
        seed=seed,
        trunk=trunk,
        progress=progress,
    )
    texts = [
        text.model_copy(update={"side": side})
        for text, (_, side) in zip(record.texts, config.texts, strict=True)
    ]
    tasks = [task.model_copy(update={"side": sides.get(task.task)}) for task in record.tasks]
    record = record.model_copy(update={"texts": texts, "tasks": tasks})
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
    rates: Mapping[Stage, float],
) -> TrainRecord:
    """Train one stage; it resumes by itself."""
    recipe = study.recipe(arm, seed, stage, model, folder / stage, rates.get(stage))
    return train(recipe, stage, progress=progress)
