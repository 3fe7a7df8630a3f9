"""A run stops at the first loss or gradient that is no number."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepen.common.errors import DivergedError
from deepen.training.engine.schedule import Schedule
from deepen.training.run_folder import last_checkpoint

_SHOWN_SEQUENCES = 8


def check_finite(
    losses: Sequence[Tensor], norm: float | None, step: int, schedule: Schedule, folder: Path
) -> None:
    """Look at a step's losses and gradient before the model is updated with them.

    Args:
        losses: Of the step's micro-batches.
        norm: The gradient's length, if it is known.
        step: The step, counted from 1.
        schedule: Says which sequences it has.
        folder: Where checkpoints lie.

    Raises:
        DivergedError: One of them is no number.
    """
    means = torch.stack([loss.float().mean() for loss in losses]).tolist()
    bad = [mean for mean in means if not math.isfinite(mean)]
    if not bad and (norm is None or math.isfinite(norm)):
        return
    what = f"The loss is {bad[0]}" if bad else f"The gradient's length is {norm}"
    batch = schedule.batch(step)
    more = " and more" if len(batch) > _SHOWN_SEQUENCES else ""
    shown = ", ".join(map(str, batch[:_SHOWN_SEQUENCES])) + more
    last = last_checkpoint(folder)
    kept = f"the last checkpoint is {last}" if last else "and no checkpoint had been written"
    raise DivergedError(
        f"{what} at step {step} (batch {step}: sequences {shown} of the data); the model was left "
        f"as it was after step {step - 1}, {kept}; train again with a lower "
        f"training.learning_rate, into another output."
    )
