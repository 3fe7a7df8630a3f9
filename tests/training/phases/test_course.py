"""Each phase has the schedule's course to itself, and what starts to train may come in slowly."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from deepen.training.engine.arguments import schedule
from deepen.training.freeze import Trains
from deepen.training.phases.course import course
from deepen.training.phases.phase import Phase
from deepen.training.recipe import TrainingConfig

PART = Trains(False, (1,), frozenset())


def phases(*lengths: tuple[int, float, float], **training: Any) -> list[Phase]:
    """Make phases of so many steps, with their peak and their ramp."""
    made, begin = list[Phase](), 0
    for steps, rate, ramp in lengths:
        settings = TrainingConfig.model_validate({"learning_rate": rate} | training)
        made.append(Phase(PART, PART, begin, begin + steps, settings, ramp))
        begin += steps
    return made


def of_a_run(training: TrainingConfig, steps: int) -> list[float]:
    """Return the learning rates of a run without phases, as transformers' engine makes them."""
    assert training.learning_rate is not None
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=training.learning_rate)
    given = schedule(training, steps)
    made: Any = get_scheduler(
        given["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=given["warmup_steps"],
        num_training_steps=steps,
        scheduler_specific_kwargs=given.get("lr_scheduler_kwargs"),
    )
    rates = []
    for _ in range(steps):
        rates.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return rates


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_a_phase_has_the_course_of_a_run(kind: str) -> None:
    both = phases((10, 4e-3, 0), (7, 1e-4, 0), schedule=kind, warmup=0.2, decay=0.4)
    at = course(both, 2e-3)
    rates = [2e-3 * at(step) for step in range(17)]
    later = both[1].training.model_copy(update={"warmup": 0})
    expected = of_a_run(both[0].training, 10) + of_a_run(later, 7)
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[0] < 4e-3
    assert rates[10] == pytest.approx(1e-4)


def test_what_starts_grows_from_0_in_its_phase_alone() -> None:
    three = phases((4, 1.0, 0), (6, 0.5, 4), (5, 0.5, 2), schedule="constant", warmup=0)
    rates = {
        starts: [course(three, 1.0, starts)(step) for step in range(15)]
        for starts in ((0,), (1,), (0, 2))
    }
    assert rates[(0,)] == [1] * 4 + [0.5] * 11
    assert rates[(1,)] == [1] * 4 + [0, 0.125, 0.25, 0.375, 0.5, 0.5] + [0.5] * 5
    assert rates[(0, 2)] == [1] * 4 + [0.5] * 6 + [0, 0.25, 0.5, 0.5, 0.5]
