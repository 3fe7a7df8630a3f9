"""The record of a run, made from what the engine logged."""

from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from deepen.base.model import Model
from deepen.common.system import versions
from deepen.planning.cost import training_flops_per_token
from deepen.records.training import LossPoint, StepTime, TrainRecord
from deepen.training.engine.measure import peak_bytes
from deepen.training.freeze import Trains
from deepen.training.recipe import Recipe, Stage


def make_record(
    recipe: Recipe,
    stage: Stage,
    model: Model,
    trains: Trains,
    engine: Any,  # noqa: ANN401 (Trainer has no types)
    *,
    parameters: int,
    trainable_parameters: int,
    tokens: int,
    matmul_rate: float,
    resumed_from_step: int | None,
) -> TrainRecord:
    """Collect what a finished run tells.

    Args:
        recipe: The resolved recipe.
        stage: The stage.
        model: The checkpoint that was trained.
        trains: What trained.
        engine: The engine, after training.
        parameters: All parameters.
        trainable_parameters: Those that trained.
        tokens: Tokens seen.
        matmul_rate: FLOPs per second of a large matrix product on this machine.
        resumed_from_step: Where the last restart began.
    """
    history = [entry for entry in engine.state.log_history if "loss" in entry]
    timed = [entry for entry in history if "step_seconds" in entry]
    wall, length = history[-1]["wall_seconds"], recipe.data.sequence_length
    seconds = sum(entry["step_seconds"] for entry in timed)
    speed = sum(entry["step_tokens"] for entry in timed) / seconds if timed else tokens / wall
    flops = _flops_per_token(model, trains, length)
    return TrainRecord(
        stage=stage,
        model=model.source.name,
        output=recipe.output,
        seed=recipe.seed,
        processes=engine.args.world_size,
        device=engine.args.device.type,
        precision="bfloat16" if engine.args.bf16 else "float32",
        parameters=parameters,
        trainable_parameters=trainable_parameters,
        trainable_blocks=list(trains.blocks),
        steps=engine.state.global_step,
        tokens=tokens,
        sequence_length=length,
        curve=[_point(entry) for entry in history],
        wall_seconds=wall,
        tokens_per_second=speed,
        step_time=_step_time(timed),
        peak_bytes=peak_bytes(engine.args.device),
        flops_per_token=flops,
        matmul_flops_per_second=matmul_rate,
        utilisation=flops * speed / (matmul_rate * engine.args.world_size),
        resumed_from_step=resumed_from_step,
        recipe=recipe.model_dump(mode="json"),
        versions=versions() | _engine_versions(),
    )


def _flops_per_token(model: Model, trains: Trains, length: int) -> float:
    """Count what training on one token costs."""
    everything, also = trains.everything, trains.outside
    return training_flops_per_token(
        model, trains.blocks, model.depth, length, trains_everything=everything, also=also
    )


def _point(entry: dict[str, Any]) -> LossPoint:
    """Turn a log line into a point of the curve."""
    kept = {key: entry[key] for key in ("step", "tokens", "wall_seconds", "learning_rate")}
    return LossPoint(loss_nats_per_token=entry["loss"], **kept)


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
    for package in ("accelerate", "trl", "datasets", "liger-kernel", "deepspeed"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
