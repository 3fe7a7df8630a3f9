"""Train one recipe from beginning to end."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from deepen.base.model import Model, open_model
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
from deepen.training.engine.arguments import check_trackers, precision_of
from deepen.training.engine.make import make_engine
from deepen.training.engine.measure import matmul_rate
from deepen.training.engine.rates import own_rates
from deepen.training.engine.saving import Averaged
from deepen.training.engine.schedule import Schedule
from deepen.training.freeze import Trains, adapt, counts, trainable
from deepen.training.load import (
    check_generation,
    check_length,
    check_memory,
    load_module,
    lowest_trained,
)
from deepen.training.processes import local_rank, rank
from deepen.training.protect import old_text, protect
from deepen.training.publish import publish
from deepen.training.recipe import Recipe, Stage
from deepen.training.record import make_record
from deepen.training.run_folder import RunFolder, last_checkpoint, step_of
from deepen.training.trunk.keep import Keeper, Trunk
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


@dataclass(frozen=True)
class _Job:
    """A recipe with everything that is found out before a model is loaded."""

    recipe: Recipe
    """The resolved recipe."""
    stage: Stage
    """The stage."""
    model: Model
    """The checkpoint."""
    trains: Trains
    """What trains."""
    tokenizer: Any
    """The checkpoint's tokenizer, with the recipe's template."""
    data: Any
    """Packed sequences or examples."""
    schedule: Schedule
    """The steps."""
    old_text: Any
    """Packed sequences of the text to protect, if there is one."""
    keeper: Keeper | None
    """Keeps what the frozen blocks below the lowest trained one compute, if it is to be kept."""


def _prepare(recipe: Recipe, stage: Stage, progress: Progress, tell: Tell) -> _Job:
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
    trains = trainable(model.source.config, model.depth, training, model.source.name)
    check_length(model, data)
    check_generation(model)
    check_trackers(training)
    check_memory(model, trains, recipe, stage)
    below = lowest_trained(trains, model.depth)
    keeps = check_possible(recipe, stage, below)
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
    keeper = None
    if keeps and pays(recipe, below, model.depth, schedule):
        keeper = Keeper(recipe, model, below, loaded, schedule, cache)
    kept = load_packed(old, training, tokenizer, cache, progress) if old else None
    return _Job(recipe, stage, model, trains, tokenizer, loaded, schedule, kept, keeper)


def _run(job: _Job, callbacks: Sequence[Any], progress: Progress, tell: Tell) -> TrainRecord:
    """Load the model, train it, write it."""
    recipe, training, folder = job.recipe, job.recipe.training, RunFolder.of(job.recipe)
    module = load_module(job.model, job.trains, training)
    adapt(module, job.model, job.trains, recipe.seed)
    parameters, trained = counts(module)
    weight_bytes = sum(info.nbytes for info in job.model.source.infos.values())
    # The kept ones are whole, and the next comes beside them.
    folder.check_disk(trained, weight_bytes, max(2, training.average_checkpoints) + 1)
    tell(_announcement(job, parameters, trained))
    rates = own_rates(job.model, job.trains, training, job.schedule.steps)
    engine = make_engine(
        recipe,
        job.stage,
        module,
        job.data,
        job.tokenizer,
        job.schedule,
        rates,
        progress,
        callbacks,
    )
    protected = None
    if job.old_text is not None:
        protected = protect(engine, recipe, job.model, job.trains, job.old_text)
        tell(
            f"Protecting {protected.directions:.0%} of the input directions of {protected.layers} "
            f"linear layers, found on {protected.tokens:,} tokens of old text."
        )
    trunk = _start_above_trunk(job, engine, progress, tell)
    rate = matmul_rate(engine.args.device, getattr(torch, precision_of(training)))
    resumed = _train(job, engine, tell)
    averaged = _averaged(job, engine, tell)
    # Every process has to ask for it: each holds a part.
    state = engine.accelerator.get_state_dict(engine.model_wrapped)
    record = make_record(
        recipe,
        job.stage,
        job.model,
        job.trains,
        engine,
        counted=(parameters, trained),
        schedule=job.schedule,
        matmul_rate=rate,
        resumed_from_step=resumed,
        trunk=trunk.record if trunk else None,
        protect=protected,
        averaged=averaged,
    )
    if rank() == 0:
        _publish(job, Averaged(state, averaged), record)
    engine.accelerator.wait_for_everyone()
    return record


def _averaged(job: _Job, engine: Any, tell: Tell) -> list[Path]:  # noqa: ANN401 (no types there)
    """Return the checkpoints that the end of the run is averaged with."""
    count = job.recipe.training.average_checkpoints - 1
    earlier = RunFolder.of(job.recipe).to_average(engine.state.global_step, count)
    if earlier:
        steps = ", ".join(f"{step_of(checkpoint):,}" for checkpoint in earlier)
        tell(f"Averaging what was trained over steps {steps} and the last.")
    return earlier


def _publish(job: _Job, state: Mapping[str, Tensor], record: TrainRecord) -> None:
    """Write the trained model and the record."""
    recipe, training, folder = job.recipe, job.recipe.training, RunFolder.of(job.recipe)
    publish(
        job.model,
        state,
        job.trains,
        folder.model,
        dtype="F32" if training.save_dtype == "float32" else None,
        chat_template=job.tokenizer.chat_template if recipe.data.chat_template else None,
        record=record,
    )
    folder.end(record, keep_checkpoints=training.keep_checkpoints)


def _train(job: _Job, engine: Any, tell: Tell) -> int | None:  # noqa: ANN401 (no types there)
    """Train to the end; return the step that an earlier run's last checkpoint was of."""
    folder = RunFolder.of(job.recipe)
    if rank() == 0:
        folder.begin(job.recipe)
    engine.accelerator.wait_for_everyone()
    last = last_checkpoint(folder.checkpoints)
    resumed = step_of(last) if last else None
    if last:
        tell(f"Resuming after step {resumed}.")
    engine.train(resume_from_checkpoint=str(last) if last else None)
    if engine.state.global_step < job.schedule.steps:
        tell(f"Stopped by a callback after step {engine.state.global_step:,}.")
    return resumed


def _start_above_trunk(job: _Job, engine: Any, progress: Progress, tell: Tell) -> Trunk | None:  # noqa: ANN401 (no types there)
    """Let the engine start above the trunk, if its output is to be kept and can be."""
    trunk = job.keeper.keep(engine, progress, tell) if job.keeper else None
    if trunk is not None:
        engine.start_above(trunk.bypass, trunk.data)
        kept = trunk.record
        tell(
            f"Starting above the {kept.blocks} frozen blocks at the bottom: their output is kept "
            f"for {kept.sequences:,} sequences ({kept.stored_bytes / 1e9:.2f} GB), of which "
            f"{kept.computed:,} were computed now, in {kept.seconds:.0f} s."
        )
    return trunk


def _announcement(job: _Job, parameters: int, trained: int) -> str:
    """Say what trains, and for how long."""
    schedule = job.schedule
    return (
        f"Training {trained:,} of {parameters:,} parameters ({trained / parameters:.1%}): "
        f"{job.trains.words}; {schedule.steps:,} steps, {schedule.tokens[-1]:,} tokens."
    )


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
