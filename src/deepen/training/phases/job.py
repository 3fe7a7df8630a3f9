"""A run that is ready to begin, and how one phase of it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deepen.base.model import Model
from deepen.common.progress import Progress, Tell
from deepen.records.training import ProtectRecord, TrunkRecord
from deepen.training.engine.arguments import checkpoints_kept, precision_of
from deepen.training.engine.make import make_engine
from deepen.training.engine.measure import matmul_rate
from deepen.training.engine.rates import own_rates, phased_rates
from deepen.training.engine.schedule import Schedule
from deepen.training.engine.trainers import Part
from deepen.training.freeze import Trains, adapt, counts, freeze, names_of
from deepen.training.load import load_module
from deepen.training.phases.phase import Phase
from deepen.training.processes import rank
from deepen.training.protect import protect
from deepen.training.recipe import Recipe, Stage
from deepen.training.record import Counted
from deepen.training.run_folder import RunFolder, last_checkpoint, step_of
from deepen.training.trunk.keep import Keeper, Trunk


@dataclass(frozen=True)
class Job:
    """A recipe with everything that is found out before a model is loaded."""

    recipe: Recipe
    """The resolved recipe."""
    stage: Stage
    """The stage."""
    model: Model
    """The checkpoint."""
    phases: Sequence[Phase]
    """What trains, and when."""
    tokenizer: Any
    """The checkpoint's tokenizer, with the recipe's template."""
    data: Any
    """Packed sequences or examples."""
    schedule: Schedule
    """The steps."""
    old_text: Any
    """Packed sequences of the text to protect, if there is one."""
    keepers: Sequence[Keeper | None]
    """For each phase what keeps the output of the blocks below all that has trained, if anything
    does."""


@dataclass(frozen=True)
class Ended:
    """A phase that is over, and what its engine leaves behind."""

    phase: Phase
    """The phase."""
    engine: Any
    """Its engine."""
    counted: Counted
    """Numbers of parameters."""
    matmul_rate: float
    """FLOPs per second of a large matrix product, measured before it."""
    resumed: int | None
    """The step that the engine resumed from."""
    trunk: TrunkRecord | None
    """What was kept of the blocks at the bottom."""
    protect: ProtectRecord | None
    """What was protected."""


def train_phase(
    job: Job, number: int, callbacks: Sequence[Any], progress: Progress, tell: Tell
) -> Ended:
    """Load the model, and train it to the end of a phase from where the last checkpoint leaves it.

    Args:
        job: The run.
        number: Which of its phases, the first one being 0.
        callbacks: transformers' callbacks.
        progress: Called with the loss and speed, and the finished share of the run.
        tell: Called with what a person should know.

    Raises:
        DeepenError: The disk is too small, or the loss is no longer a number.
    """
    recipe, training, model = job.recipe, job.recipe.training, job.model
    phase, table = job.phases[number], job.model.anatomy.table
    module = load_module(model, phase.so_far, training)
    adapt(module, model, phase.so_far, recipe.seed)
    # Before the trunk's parameters may be freed.
    counted = _counted(job, number, module)
    _check_disk(job, module, counted)
    part, rates = None, own_rates(model, phase.trains, training, job.schedule.steps)
    if training.phases:
        before = names_of(module, job.phases[number - 1].so_far, table) if number else []
        part = Part(phase.end, names_of(module, phase.so_far, table), before)
        rates = phased_rates(model, job.phases)
        freeze(module, phase.trains, table)
    tell(_announcement(job, number, counted))
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
        part,
    )
    protected = None
    if job.old_text is not None:
        protected = protect(engine, recipe, model, phase.trains, job.old_text)
        tell(
            f"Protecting {protected.directions:.0%} of the input directions of {protected.layers} "
            f"linear layers, found on {protected.tokens:,} tokens of old text."
        )
    trunk = _start_above_trunk(job.keepers[number], engine, progress, tell)
    matmul = matmul_rate(engine.args.device, getattr(torch, precision_of(training)))
    resumed = _train(job, phase, engine, tell)
    kept = trunk.record if trunk else None
    return Ended(phase, engine, counted, matmul, resumed, kept, protected)


def _counted(job: Job, number: int, module: Any) -> Counted:  # noqa: ANN401 (no types there)
    """Count what has trained at the end of a phase, and in each until then."""
    everything, trained = counts(module)
    if not job.recipe.training.phases:
        return Counted(everything, trained, [trained])
    until = job.phases[: number + 1]
    return Counted(everything, trained, [_size(job, module, phase.trains) for phase in until])


def _size(job: Job, module: Any, trains: Trains) -> int:  # noqa: ANN401
    """Count the parameters of what trains."""
    names = names_of(module, trains, job.model.anatomy.table)
    return sum(module.get_parameter(name).numel() for name in names)


def _check_disk(job: Job, module: Any, counted: Counted) -> None:  # noqa: ANN401
    """Refuse to start what the disk cannot hold, the checkpoints of later phases included."""
    training, most = job.recipe.training, counted.trained
    if training.phases:
        most = _size(job, module, job.phases[-1].so_far)
    weight_bytes = sum(info.nbytes for info in job.model.source.infos.values())
    # The kept ones are whole, and the next comes beside them.
    RunFolder.of(job.recipe).check_disk(most, weight_bytes, checkpoints_kept(training) + 1)


def _announcement(job: Job, number: int, counted: Counted) -> str:
    """Say what trains, and for how long."""
    phase, schedule, which = job.phases[number], job.schedule, "Training"
    if len(job.phases) > 1:
        which = f"Phase {number + 1} of {len(job.phases)}: training"
    trained = counted.in_phases[number]
    return (
        f"{which} {trained:,} of {counted.all:,} parameters ({trained / counted.all:.1%}): "
        f"{phase.trains.words}; {phase.end - phase.begin:,} steps, "
        f"{schedule.tokens[phase.end] - schedule.tokens[phase.begin]:,} tokens."
    )


def _start_above_trunk(
    keeper: Keeper | None,
    engine: Any,  # noqa: ANN401 (no types there)
    progress: Progress,
    tell: Tell,
) -> Trunk | None:
    """Let the engine start above the trunk, if its output is to be kept and can be."""
    trunk = keeper.keep(engine, progress, tell) if keeper else None
    if trunk is not None:
        engine.start_above(trunk.bypass, trunk.data)
        kept = trunk.record
        tell(
            f"Starting above the {kept.blocks} frozen blocks at the bottom: their output is kept "
            f"for {kept.sequences:,} sequences ({kept.stored_bytes / 1e9:.2f} GB), of which "
            f"{kept.computed:,} were computed now, in {kept.seconds:.0f} s."
        )
    return trunk


def _train(job: Job, phase: Phase, engine: Any, tell: Tell) -> int | None:  # noqa: ANN401
    """Train to the end of a phase; return the step that the last checkpoint before was of."""
    folder = RunFolder.of(job.recipe)
    if rank() == 0:
        folder.begin(job.recipe)
    engine.accelerator.wait_for_everyone()
    last = last_checkpoint(folder.checkpoints)
    resumed = step_of(last) if last else None
    if resumed == phase.begin:
        engine.needed = engine.part.kept_before
    elif last:
        tell(f"Resuming after step {resumed}.")
    engine.train(resume_from_checkpoint=str(last) if last else None)
    if engine.state.global_step < job.schedule.steps and not engine.phase.over:
        tell(f"Stopped by a callback after step {engine.state.global_step:,}.")
    return resumed
