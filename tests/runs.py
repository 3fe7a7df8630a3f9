"""What tests of training share."""

from collections.abc import Callable

from deepen.results import TrainRecord
from deepen.training.recipe import Recipe

Make = Callable[..., Recipe]
"""Makes a recipe; the fixture of that name says how."""


def losses(record: TrainRecord) -> list[float]:
    """Return a run's losses, step by step."""
    return [point.loss_nats_per_token for point in record.curve]
