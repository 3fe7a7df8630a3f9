"""The recipe in the words of transformers' TrainingArguments."""

import math
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from deepen.common.errors import DeepenError, unknown
from deepen.training.recipe import Stage, TrainingConfig

_MOST_POINTS = 2000
_STEPS_BETWEEN_SAVES = 50, 500
"""At least and at most: a checkpoint of a large model takes longer than many steps."""


def arguments(
    training: TrainingConfig, stage: Stage, steps: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Return the keyword arguments that TrainingArguments and SFTConfig share.

    Args:
        training: The recipe's part; the stage's defaults are filled in.
        stage: Which engine.
        steps: Optimizer steps.
        seed: Of everything random but the data's order.
        folder: Where checkpoints go.

    Raises:
        DeepenError: The batch cannot be divided among the processes.
    """
    cuda = on_gpu(training)
    beta1, beta2 = training.betas
    log_every = training.log_every or math.ceil(steps / _MOST_POINTS)
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "adam_beta1": beta1,
        "adam_beta2": beta2,
        "adam_epsilon": training.epsilon,
        "max_grad_norm": training.max_gradient_norm,
        **schedule(training, steps),
        "logging_steps": log_every,
        "logging_nan_inf_filter": False,
        "save_steps": steps_between_saves(training, steps),
        "save_total_limit": checkpoints_kept(training),
        "seed": seed,
        "use_cpu": not cuda,
        "bf16": precision_of(training) == "bfloat16",
        _checkpointing(): False,  # TRL turns it on
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
        "report_to": _trackers(training),
        "dataloader_num_workers": training.workers,
        "dataloader_pin_memory": cuda,
        "use_liger_kernel": fuses_loss(training, stage),
        "liger_kernel_config": {
            "fused_linear_cross_entropy": True,
            **dict.fromkeys(("cross_entropy", "rope", "rms_norm", "swiglu"), False),
        },
    }


def steps_between_saves(training: TrainingConfig, steps: int) -> int:
    """Return how many steps lie between checkpoints of a run of so many.

    Raises:
        DeepenError: Fewer checkpoints come of it than are to be averaged.
    """
    least, most = _STEPS_BETWEEN_SAVES
    between = training.save_every or min(most, max(least, math.ceil(steps / 10)))
    count, wanted = math.ceil(steps / between), training.average_checkpoints
    if count < wanted:
        raise DeepenError(
            f"training.average_checkpoints={wanted} asks for more checkpoints than there will be: "
            f"{steps:,} steps with one every {between:,} have {count}; lower "
            f"training.save_every or average fewer."
        )
    return between


def checkpoints_kept(training: TrainingConfig) -> int:
    """Return how many checkpoints are kept: what is averaged, and the last ends of phases.

    The one before the last stays in any case until the last is whole.
    """
    averaged = training.average_checkpoints
    ends = len(training.phases or [None]) - 1 if averaged > 1 else 0
    return max(2, averaged + ends)


def _checkpointing() -> str:
    """Name the argument that recomputes activations; transformers renamed it after 5.17."""
    from transformers import TrainingArguments

    new, old = "activation_checkpointing", "gradient_checkpointing"
    return new if new in {field.name for field in fields(TrainingArguments)} else old


def micro_batches(training: TrainingConfig, processes: int) -> tuple[int, int]:
    """Divide a step's sequences among processes and passes.

    Returns:
        Sequences in one forward pass of a process, and passes in a step.

    Raises:
        DeepenError: They cannot be divided evenly.
    """
    each, rest = divmod(training.batch_size, processes)
    micro = training.micro_batch_size or each
    if rest or each % micro:
        raise DeepenError(
            f"training.batch_size={training.batch_size} is not a multiple of {processes} processes "
            f"× training.micro_batch_size={training.micro_batch_size or 1}; change one of them."
        )
    return micro, each // micro


def precision_of(training: TrainingConfig) -> str:
    """Return the arithmetic of the passes: ``float32`` or ``bfloat16``."""
    if training.precision != "auto":
        return training.precision
    return "bfloat16" if on_gpu(training) else "float32"


def on_gpu(training: TrainingConfig) -> bool:
    """Whether a GPU trains."""
    return training.device == "auto" and torch.cuda.is_available()


def fuses_loss(training: TrainingConfig, stage: Stage) -> bool:
    """Whether Liger fuses head and loss; TRL's engine has a fused head of its own."""
    present = torch.cuda.is_available() and find_spec("liger_kernel") is not None
    return stage == "cpt" and present and on_gpu(training) and training.fused_loss == "auto"


def tensorboard(training: TrainingConfig) -> bool:
    """Whether to write for TensorBoard."""
    return "tensorboard" in _listed(training) and find_spec("tensorboard") is not None


def check_trackers(training: TrainingConfig) -> None:
    """Refuse trackers that transformers does not know or cannot reach.

    Raises:
        DeepenError: One is unknown, or its package is missing.
    """
    from transformers.integrations import integration_utils

    known, alone = [*integration_utils.INTEGRATION_TO_CALLBACK], ("all", "none")
    there = integration_utils.get_available_reporting_integrations()
    given = _listed(training)
    for name in given:
        if name not in known and (name not in alone or len(given) > 1):
            raise unknown("tracker (training.report_to)", name, [*known, *alone])
        # transformers asks elsewhere whether flyte is there; TensorBoard is left out where it is
        # not, since nobody has to ask for it.
        if name not in (*there, *alone, "flyte", "tensorboard"):
            raise DeepenError(
                f"The package of tracker {name!r} (training.report_to) is not installed; install "
                f"it, or set training.report_to to none."
            )


def _listed(training: TrainingConfig) -> list[str]:
    """Return the names of the trackers."""
    given = training.report_to
    return [given] if isinstance(given, str) else given


def _trackers(training: TrainingConfig) -> list[str] | str:
    """Return the trackers that transformers sets up; TensorBoard is given its folder elsewhere."""
    return [name for name in _listed(training) if name != "tensorboard"] or "none"


def schedule(training: TrainingConfig, steps: int) -> dict[str, Any]:
    """Name the schedule and its numbers for a run, or a phase, of so many steps."""
    warmup = training.warmup * steps if training.warmup < 1 else training.warmup
    share = training.min_learning_rate_share
    if training.schedule == "wsd":
        decay = round(training.decay * steps)
        extra = {"num_decay_steps": decay, "min_lr_ratio": share}
        return {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": extra,
            "warmup_steps": min(math.ceil(warmup), steps - decay),
        }
    if training.schedule == "cosine":
        return {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": share},
            "warmup_steps": math.ceil(warmup),
        }
    return {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": math.ceil(warmup)}
