"""Train one recipe from beginning to end."""

import gc
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.common.lock import locked
from deepen.common.progress import Progress, Tell, silent, unheard
from deepen.common.quiet import quiet_transformers
from deepen.records.training import TrainRecord
from deepen.training.data.examples import join_examples, load_examples
from deepen.training.data.order import steps_of
from deepen.training.data.packed import load_packed
from deepen.training.data.rows import local_files
from deepen.training.data.sources import load_sources, sources
from deepen.training.data.templates import with_template
from deepen.training.engine.arguments import (
    check_trackers,
    on_gpu,
    steps_between_saves,
)
from deepen.training.engine.saving import Averaged
from deepen.training.engine.schedule import Schedule
from deepen.training.freeze import Trains
from deepen.training.load import (
    check_generation,
    check_length,
    check_memory,
    lowest_trained,
)
from deepen.training.neurons import check_neurons
from deepen.training.phases.job import Ended, Job, train_phase
from deepen.training.phases.phase import parts, phases_of
from deepen.training.processes import local_rank, rank, sharded, wait_for_all
from deepen.training.protect import old_text
from deepen.training.publish import publish
from deepen.training.recipe import Recipe, Stage, TrainingConfig
from deepen.training.record import make_record
from deepen.training.run_folder import RunFolder, last_checkpoint, step_of
from deepen.training.trunk.keep import Keeper
from deepen.training.trunk.wanted import check_possible, pays


def train(
    recipe: Recipe,
    stage: Stage,
    *,
    resume: bool = True,
    callbacks: Sequence[Any] = (),
    progress: Progress = silent,
    tell: Tell = unheard,
) -> TrainRecord:
    """Train a grown checkpoint; start it the same way in every process of a launcher.

    A run that was killed continues from its last checkpoint, and a run that is finished returns its
    record at once.

    Args:
        recipe: What to train, on what, and where to write.
        stage: Continual pre-training or supervised fine-tuning.
        resume: Whether to continue an earlier run; otherwise it is deleted first.
        callbacks: transformers' ``TrainerCallback``s, for either stage. Every process has its own;
            what one of them asks for (to log, save or stop) all processes do.
        progress: Called with the loss and speed, and the finished share.
        tell: Called with what a person should know, by the first process only.

    Raises:
        DeepenError: The recipe, the checkpoint or the data cannot be used, another run writes to
            the same output, no checkpoint to resume from is whole, the loss is no longer a number,
            or the disk is full.
        RuntimeError: A frozen parameter has changed.
    """
    recipe = recipe.resolved(stage)
    folder = RunFolder.of(recipe)
    if rank() != 0:
        progress, tell = silent, unheard
    # The processes of one run are one writer.
    with locked(folder.path) if rank() == 0 else nullcontext():
        if resume:
            if (record := folder.finished(recipe)) is not None:
                return record
            if rank() == 0:
                folder.drop_broken(tell)
        elif rank() == 0:
            folder.clear()
        with (
            _random_state_kept(),
            quiet_transformers(),
            folder.kept_told(),
            folder.full_disk_explained(),
        ):
            return _run(_prepare(recipe, stage, progress, tell), callbacks, progress, tell)


def _prepare(recipe: Recipe, stage: Stage, progress: Progress, tell: Tell) -> Job:
    """Check everything that can be checked before a model is loaded, and read the data.

    Raises:
        DeepenError: Something cannot be used; nothing has then been written.
    """
    data, training = recipe.data, recipe.training
    assert data.seed is not None
    old = old_text(recipe)
    for source in [*sources(data), *([old] if old else [])]:
        local_files(source)
    model = open_model(recipe.model)
    trained = parts(model.source.config, model.depth, training, model.source.name)
    whole = reduce(or_, trained)
    _check_phases(training)
    if training.neurons:
        check_neurons(model, training.neurons)
    check_length(model, data)
    check_generation(model)
    check_trackers(training)
    check_memory(model, whole, recipe, stage)
    keeps = check_possible(recipe, stage, lowest_trained(trained[0], model.depth))
    tokenizer = model.tokenizer()
    with_template(data, tokenizer)
    cache = Path(data.cache) if data.cache else RunFolder.of(recipe).data
    lengths: Any = data.sequence_length
    if stage == "cpt":
        loaded, mixture = load_sources(
            data,
            lambda d: load_packed(d, training, tokenizer, cache, progress, tell),
            ConcatDataset,
        )
    else:
        loaded, mixture = load_sources(
            data, lambda d: load_examples(d, tokenizer, cache, progress, tell), join_examples
        )
        lengths = np.array([len(ids) for ids in loaded["input_ids"]])
    steps = steps_of(training, lengths, mixture, data.seed)
    schedule = Schedule(training, steps, lengths, mixture, data.seed)
    phases = phases_of(training, trained, steps)
    keepers: list[Keeper | None] = []
    for phase in phases:
        below = lowest_trained(phase.so_far, model.depth)
        keeper = None
        if keeps and below:
            # What a shorter run would draw, and what is read ahead of it.
            end = min(steps, phase.end + 1 + 2 * training.workers)
            until = schedule
            if end < steps:
                until = Schedule(training, end, lengths, mixture, data.seed)
            if pays(recipe, below, model.depth, until):
                keeper = Keeper(recipe, model, below, loaded, until, cache)
        keepers.append(keeper)
    text = load_packed(old, training, tokenizer, cache, progress) if old else None
    return Job(recipe, stage, model, phases, tokenizer, loaded, schedule, text, keepers)


def _check_phases(training: TrainingConfig) -> None:
    """Refuse phases where no process holds whole weights.

    Raises:
        DeepenError: It is so.
    """
    if training.phases and sharded():
        raise DeepenError(
            "training.phases changes which whole weights have an optimizer's state, and FSDP and "
            "DeepSpeed divide them; launch without, or leave it out."
        )


def _run(job: Job, callbacks: Sequence[Any], progress: Progress, tell: Tell) -> TrainRecord:
    """Train phase after phase, then write the model.

    A phase begins as a run does that resumes, from the checkpoint that the one before has ended
    with: a kill there changes no more than one anywhere else.
    """
    recipe, resumed, trunk = job.recipe, None, None
    ended: Ended | None = None
    if len(job.phases) > 1:
        # The first process may have had an earlier run's checkpoints to delete.
        wait_for_all(on_gpu=on_gpu(recipe.training))
    last = last_checkpoint(RunFolder.of(recipe).checkpoints)
    taken = step_of(last) if last else 0
    for number, phase in enumerate(job.phases):
        if phase.end <= taken and phase is not job.phases[-1]:
            continue
        if ended is not None:
            ended = None  # or two models would be in memory
            gc.collect()
        ended = train_phase(job, number, callbacks, progress, tell)
        resumed = resumed if taken < phase.begin else ended.resumed
        trunk = ended.trunk or trunk
        if not ended.engine.phase.over:
            break
    assert ended is not None
    engine = ended.engine
    averaged = _averaged(job, engine, tell)
    # Every process has to ask for it: each holds a part.
    state = engine.accelerator.get_state_dict(engine.model_wrapped)
    record = make_record(
        recipe,
        job.stage,
        job.model,
        job.phases[: job.phases.index(ended.phase) + 1],
        engine,
        counted=ended.counted,
        schedule=job.schedule,
        matmul_rate=ended.matmul_rate,
        resumed_from_step=resumed,
        trunk=trunk,
        protect=ended.protect,
        averaged=averaged,
    )
    if rank() == 0:
        load = job.model.in_memory.load
        _publish(job, ended.phase.so_far, Averaged(state, averaged, engine.kept, load), record)
    engine.accelerator.wait_for_everyone()
    return record


def _averaged(job: Job, engine: Any, tell: Tell) -> list[Path]:  # noqa: ANN401 (no types there)
    """Return the checkpoints that the end of the run is averaged with."""
    training = job.recipe.training
    between = steps_between_saves(training, job.schedule.steps)
    earlier = RunFolder.of(job.recipe).to_average(
        engine.state.global_step, training.average_checkpoints - 1, between
    )
    if earlier:
        steps = ", ".join(f"{step_of(checkpoint):,}" for checkpoint in earlier)
        tell(f"Averaging what was trained over steps {steps} and the last.")
    return earlier


def _publish(job: Job, trained: Trains, state: Mapping[str, Tensor], record: TrainRecord) -> None:
    """Write the trained model and the record."""
    recipe, training, folder = job.recipe, job.recipe.training, RunFolder.of(job.recipe)
    publish(
        job.model,
        state,
        trained,
        folder.model,
        dtype="F32" if training.save_dtype == "float32" else None,
        chat_template=job.tokenizer.chat_template if recipe.data.chat_template else None,
        record=record,
    )
    folder.end(record, keep_checkpoints=training.keep_checkpoints)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put the global random states back, which the engines seed."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [local_rank()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
