"""The record of a run, made from what the engine logged."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from deepen.base.model import Model
from deepen.common.system import versions
from deepen.planning.cost import forward_flops_per_token, training_flops_per_token
from deepen.planning.partial import lora_flops_per_token, neuron_flops_per_token
from deepen.records.growth import BaseIdentity, Lineage, Training, read_entry
from deepen.records.training import (
    LossPoint,
    PhaseRecord,
    ProtectRecord,
    SourceRecord,
    StepTime,
    TrainRecord,
    TrunkRecord,
)
from deepen.training.data.sources import sources
from deepen.training.engine.measure import peak_bytes
from deepen.training.engine.schedule import Schedule
from deepen.training.freeze import Trains
from deepen.training.load import lowest_trained
from deepen.training.phases.phase import Phase
from deepen.training.recipe import DataConfig, Recipe, Stage
from deepen.training.run_folder import step_of
from deepen.verification.trained import block_digest


@dataclass(frozen=True)
class Counted:
    """Numbers of parameters; tied ones count once."""

    all: int
    """All there are."""
    trained: int
    """Those that trained."""
    in_phases: Sequence[int]
    """Those that trained in each phase."""


def make_record(
    recipe: Recipe,
    stage: Stage,
    model: Model,
    phases: Sequence[Phase],
    engine: Any,  # noqa: ANN401 (Trainer has no types)
    *,
    counted: Counted,
    schedule: Schedule,
    matmul_rate: float,
    resumed_from_step: int | None,
    trunk: TrunkRecord | None,
    protect: ProtectRecord | None,
    averaged: Sequence[Path],
) -> TrainRecord:
    """Collect what a finished run tells.

    Args:
        recipe: The resolved recipe.
        stage: The stage.
        model: The checkpoint that was trained.
        phases: What trained, and when.
        engine: The engine of the last one, after training.
        counted: How many parameters there are, and how many of them trained.
        schedule: Which sequences it saw.
        matmul_rate: FLOPs per second of a large matrix product on this machine.
        resumed_from_step: Where the last restart began.
        trunk: What was kept of the frozen blocks at the bottom, as long as they were frozen.
        protect: What was protected.
        averaged: Earlier checkpoints that the result is averaged with.
    """
    length, steps = recipe.data.sequence_length, engine.state.global_step
    told = _phases(model, phases, counted, schedule, steps, length)
    run = told[-1].flops_per_token - _kept_flops(model, phases[-1], trunk, length)
    rate = run * _speed(engine, phases[-1].begin)
    return TrainRecord(
        stage=stage,
        model=model.source.name,
        output=recipe.output,
        seed=recipe.seed,
        **_machine(engine),
        parameters=counted.all,
        trainable_parameters=counted.trained,
        trainable_blocks=list(phases[-1].so_far.blocks),
        steps=steps,
        tokens=schedule.tokens[steps],
        sequence_length=length,
        sources=_sources(recipe.data, schedule, steps),
        **_measured(engine),
        matmul_flops_per_second=matmul_rate,
        flops_per_token=_mean_flops(told),
        utilisation=rate / (matmul_rate * engine.args.world_size),
        resumed_from_step=resumed_from_step,
        averaged_steps=[*map(step_of, averaged), steps] if averaged else [],
        phases=told if recipe.training.phases else [],
        trunk=trunk,
        protect=_each_time(protect, len(phases)),
        recipe=recipe.model_dump(mode="json"),
        versions=versions() | _engine_versions(),
    )


def lineage_after(
    model: Model, trains: Trains, record: TrainRecord, stored_dtype: str | None
) -> Lineage:
    """Return a trained model's lineage, which names what may have changed.

    Args:
        model: The checkpoint that was trained.
        trains: What trained.
        record: What was done.
        stored_dtype: What all weights are stored as, if not as they were.
    """
    source = model.source
    lineage = read_entry(source.config) or Lineage(new_blocks=[], steps=[])
    training = Training(
        stage=record.stage,
        base=BaseIdentity(
            name=source.name, revision=source.revision, fingerprint=source.fingerprint
        ),
        after_steps=len(lineage.steps),
        everything=trains.everything,
        blocks=list(trains.blocks),
        outside=sorted(trains.outside),
        lora=trains.lora.rank if trains.lora else None,
        neurons=trains.neurons,
        stored_dtype=stored_dtype,
        new_blocks_before={
            index: block_digest(model.family, index, model.anatomy.blocks[index], source)
            for index in lineage.new_blocks
            if index in trains.blocks
        },
        steps=record.steps,
        tokens=record.tokens,
    )
    return lineage.model_copy(update={"trainings": [*lineage.trainings, training]})


def _machine(engine: Any) -> dict[str, Any]:  # noqa: ANN401
    """Say where it was trained, under the names of the record."""
    args = engine.args
    precision = "bfloat16" if args.bf16 else "float32"
    return {"processes": args.world_size, "device": args.device.type, "precision": precision}


def _phases(
    model: Model,
    phases: Sequence[Phase],
    counted: Counted,
    schedule: Schedule,
    steps: int,
    length: int,
) -> list[PhaseRecord]:
    """Say what trained for how long, in a run that ended after so many steps."""
    told = []
    for phase, trained in zip(phases, counted.in_phases, strict=True):
        end, rate = min(phase.end, steps), phase.training.learning_rate
        assert rate is not None
        told.append(
            PhaseRecord(
                what=phase.trains.words,
                first_step=phase.begin + 1,
                steps=end - phase.begin,
                tokens=schedule.tokens[end] - schedule.tokens[phase.begin],
                learning_rate=rate,
                trainable_parameters=trained,
                flops_per_token=_flops_per_token(model, phase.trains, length),
            )
        )
    return told


def _each_time(protect: ProtectRecord | None, phases: int) -> ProtectRecord | None:
    """Count what it cost to read the old text in every phase."""
    if protect is None:
        return None
    return protect.model_copy(update={"flops": protect.flops * phases})


def _mean_flops(phases: Sequence[PhaseRecord]) -> float:
    """Return the FLOPs of a token, over all phases; those of the only one as they are."""
    if len(phases) == 1:
        return phases[0].flops_per_token
    total = sum(phase.flops_per_token * phase.tokens for phase in phases)
    return total / sum(phase.tokens for phase in phases)


def _measured(engine: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the loss over the run, time and memory, under the names of the record."""
    history = [entry for entry in engine.state.log_history if "loss" in entry]
    timed = [entry for entry in history if "step_seconds" in entry]
    return {
        "curve": [_point(entry) for entry in history],
        "wall_seconds": history[-1]["wall_seconds"],
        "tokens_per_second": _speed(engine, 0),
        "step_time": _step_time(timed),
        "peak_bytes": peak_bytes(engine.args.device),
    }


def _speed(engine: Any, begin: int) -> float:  # noqa: ANN401
    """Return the tokens per second after a step: of timed steps, if there are some."""
    history = [entry for entry in engine.state.log_history if "loss" in entry]
    timed = [e for e in history if "step_seconds" in e and e["step"] > begin]
    if timed:
        return _tokens_per_second(timed)
    return float(history[-1]["tokens"] / history[-1]["wall_seconds"])


def _sources(data: DataConfig, schedule: Schedule, step: int) -> list[SourceRecord]:
    """Say what was seen of each source until a step; of local ones the name alone is told."""
    told, seen = [], schedule.drawn_until(step)
    for source, share, items, drawn in zip(
        sources(data), data.shares, schedule.order.mixture.items, seen, strict=True
    ):
        paths = [source.path] if isinstance(source.path, str) else source.path
        names = [Path(path).name if Path(path).exists() else path for path in paths]
        told.append(
            SourceRecord(
                name=", ".join(names),
                share=float(share),
                items=items,
                sequences=drawn.sequences,
                tokens=drawn.tokens,
            )
        )
    return told


def _flops_per_token(model: Model, trains: Trains, length: int) -> float:
    """Count what training on one token costs."""
    if trains.lora:
        return lora_flops_per_token(model, trains.lora.rank, trains.blocks, length)
    if trains.neurons:
        return neuron_flops_per_token(model, trains.neurons, length)
    everything, also = trains.everything, trains.outside
    return training_flops_per_token(
        model, trains.blocks, model.depth, length, trains_everything=everything, also=also
    )


def _kept_flops(model: Model, phase: Phase, trunk: TrunkRecord | None, length: int) -> float:
    """Count what a token of a phase did not cost, because the trunk's output was kept."""
    if trunk is None or lowest_trained(phase.so_far, model.depth) < trunk.blocks:
        return 0.0
    return forward_flops_per_token(model, range(trunk.blocks), length)


def _point(entry: dict[str, Any]) -> LossPoint:
    """Turn a log line into a point of the curve."""
    kept = {key: entry[key] for key in ("step", "tokens", "wall_seconds", "learning_rate")}
    return LossPoint(loss_nats_per_token=entry["loss"], **kept)


def _tokens_per_second(timed: list[dict[str, Any]]) -> float:
    """Divide the timed steps' tokens by their time."""
    tokens, seconds = (sum(e[key] for e in timed) for key in ("step_tokens", "step_seconds"))
    return float(tokens / seconds)


def _step_time(timed: list[dict[str, Any]]) -> StepTime:
    """Say where the time of a step goes; 0 if no step was timed."""

    def typical(key: str) -> float:
        return float(median(entry[key] for entry in timed)) if timed else 0.0

    return StepTime(
        forward_seconds=typical("forward_seconds"),
        backward_seconds=typical("backward_seconds"),
        optimizer_seconds=typical("optimizer_seconds"),
        total_seconds=typical("step_seconds"),
    )


def _engine_versions() -> dict[str, str]:
    """Return the versions of the engines."""
    installed = {}
    for package in ("accelerate", "trl", "peft", "datasets", "liger-kernel", "deepspeed"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
