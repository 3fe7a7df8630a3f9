"""What tests of training share."""

from collections.abc import Callable

import pytest

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
