"""The learning rate over a run in phases."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from deepen.training.engine.arguments import schedule
from deepen.training.phases.phase import Phase
from deepen.training.recipe import TrainingConfig


def course(
    phases: Sequence[Phase], unit: float, starts: Collection[int] = ()
) -> Callable[[int], float]:
    """Return the learning rate over a run in phases.

    Each phase has the schedule's course over its own steps, the later ones without warm-up.

    Args:
        phases: The phases, of a resolved recipe.
        unit: The learning rate that is 1.
        starts: Phases with whose beginning the parameters start to train.

    Returns:
        Function of the steps taken; at the end of the run it goes on with the last phase.
    """
    shapes = []
    for phase in phases:
        later = {"warmup": 0} if phase.begin else {}
        shapes.append(_shape(phase.training.model_copy(update=later), phase.end - phase.begin))

    def at(step: int) -> float:
        number = next((n for n, one in enumerate(phases) if step < one.end), len(phases) - 1)
        phase, taken = phases[number], step - phases[number].begin
        grown = taken / phase.ramp if number in starts and taken < phase.ramp else 1.0
        assert phase.training.learning_rate is not None
        return phase.training.learning_rate / unit * shapes[number](taken) * grown

    return at


def _shape(training: TrainingConfig, steps: int) -> Callable[[int], float]:
    """Return the schedule's course, as transformers has it for a run of so many steps."""
    from transformers import get_scheduler

    given = schedule(training, steps)
    nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    made: Any = get_scheduler(
        given["lr_scheduler_type"],
        nothing,
        num_warmup_steps=given["warmup_steps"],
        num_training_steps=steps,
        scheduler_specific_kwargs=given.get("lr_scheduler_kwargs"),
    )
    shape: Callable[[int], float] = made.lr_lambdas[0]
    return shape
