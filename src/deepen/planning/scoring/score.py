"""Score a base's blocks or gaps in the way that a placement names."""

import math

import torch

from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.planning.scoring.blocks import importances, influences
from deepen.planning.scoring.calibration import read_calibration
from deepen.planning.scoring.gradients import promises
from deepen.records.growth import Scores

_DECIMALS = 6


def score(
    model: Model, by: str, file: str | None, device: torch.device, progress: Progress = silent
) -> Scores:
    """Score every block of a model, or every gap, on a text.

    Args:
        model: The model.
        by: ``importance``, ``influence`` or ``gradient``.
        file: The text; see ``read_calibration``.
        device: Where to compute.
        progress: Called with the finished share.

    Raises:
        DeepenError: The text or the model cannot be used, or the model computes no numbers.
    """
    calibration = read_calibration(model, file, sequences=2 if by == "gradient" else 1)
    tokens, begins = calibration.tokens, calibration.opening
    if by == "gradient":
        values = promises(model, tokens, device, progress)
    elif by == "importance":
        values = importances(model, tokens, device, progress)
    else:
        values = influences(model, tokens, device, progress, opening=begins)
    if not all(map(math.isfinite, values)):
        raise DeepenError(
            f"{model.source.name} computes no numbers on the calibration text, so nothing says "
            f"where to grow; choose another placement."
        )
    return Scores(
        by=by,
        of="gaps" if by == "gradient" else "blocks",
        values=[round(value, _DECIMALS) for value in values],
        text=calibration.name,
        text_sha256=calibration.sha256,
        tokens=tokens.numel() - begins * len(tokens),
    )
