"""What tests of training share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepen.base.text import PASSAGE
from deepen.records.training import TrainRecord
from deepen.training import train
from deepen.training.recipe import Recipe

Make = Callable[..., Recipe]
"""Makes a recipe; the fixture of that name says how."""


def losses(record: TrainRecord) -> list[float]:
    """Return a run's losses, step by step."""
    return [point.loss_nats_per_token for point in record.curve]


class Interrupted(BaseException):
    """Ends a run as abruptly as can be done inside a process."""


def interrupted(recipe: Make, step: int, **settings: object) -> TrainRecord:
    """Break a run off after a step is logged, then run it again."""

    def progress(stage: str, share: float) -> None:
        if stage.startswith("cpt") and share >= step / 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe(**settings), "cpt", progress=progress)
    return train(recipe(**settings), "cpt")


def trained(model: Path, out: Path, *, text: str = PASSAGE, **training: Any) -> Path:
    """Train a checkpoint, for two steps by default; return the trained model's folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "text.txt").write_text(text, encoding="utf-8")
    settings = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-2, "report_to": "none"}
    recipe = {
        "model": str(model),
        "data": {"path": str(out / "text.txt"), "sequence_length": 16},
        "training": settings | training,
        "output": str(out / "run"),
    }
    train(Recipe.model_validate(recipe), "cpt")
    return out / "run" / "model"
