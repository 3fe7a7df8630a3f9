"""What trains for how long."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepen.common.errors import DeepenError
from deepen.training.freeze import Trains, trainable
from deepen.training.recipe import PhaseConfig, TrainingConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of a run in which one part of the model trains; most runs have one."""

    trains: Trains
    """What trains."""
    so_far: Trains
    """What has trained when it is over, in it or before."""
    begin: int
    """Steps taken before it."""
    end: int
    """Steps taken when it is over."""
    training: TrainingConfig
    """How, as a recipe without phases."""
    ramp: float = 0.0
    """Steps in which the learning rate of what starts to train grows from 0."""


def parts(
    config: Mapping[str, Any], depth: int, training: TrainingConfig, name: str
) -> list[Trains]:
    """Decide what trains in each phase; the arguments and errors are those of ``trainable``."""
    phases = training.phases or [PhaseConfig()]
    return [trainable(config, depth, in_phase(training, phase), name) for phase in phases]


def phases_of(training: TrainingConfig, trained: Sequence[Trains], steps: int) -> list[Phase]:
    """Divide a run into phases.

    Args:
        training: What the recipe asks for.
        trained: What trains in each.
        steps: Optimizer steps of the run.

    Raises:
        DeepenError: They do not fit into the run.
    """
    so_far = itertools.accumulate(trained, operator.or_)
    phases = []
    for asked, part, whole, (begin, end) in zip(
        training.phases or [PhaseConfig()],
        trained,
        so_far,
        itertools.pairwise(ends(training, steps)),
        strict=True,
    ):
        ramp = asked.ramp * (end - begin) if asked.ramp < 1 else asked.ramp
        phases.append(Phase(part, whole, begin, end, in_phase(training, asked), ramp))
    return phases


def ends(training: TrainingConfig, steps: int) -> list[int]:
    """Return 0, and how many steps of a run of so many are taken when each phase is over.

    Raises:
        DeepenError: A phase has no step, or together they have more or fewer than the run.
    """
    after = borders(training, steps)
    if after[-1] != steps:
        raise DeepenError(
            f"The phases of training.phases have {after[-1]:,} steps together, and the run has "
            f"{steps:,}; change their steps (a last one that says none has the rest)."
        )
    for number, (begin, end) in enumerate(itertools.pairwise(after), 1):
        if begin >= end:
            raise DeepenError(
                f"Phase {number} of training.phases has none of the run's {steps:,} steps; change "
                f"the steps of the phases, or train longer."
            )
    return after


def borders(training: TrainingConfig, steps: int) -> list[int]:
    """Return what ``ends`` does, whether or not the phases fit into the run."""
    given = [phase.steps or 0 for phase in training.phases or [PhaseConfig()]]
    lengths = [length * steps if length < 1 else length for length in given]
    after = [0, *map(round, itertools.accumulate(lengths))]
    return after if given[-1] else [*after[:-1], max(steps, after[-1])]


def in_phase(training: TrainingConfig, phase: PhaseConfig) -> TrainingConfig:
    """Return how a phase trains, as a recipe without phases."""
    own = {key: getattr(phase, key) for key in ("trains", "also", "learning_rate")}
    given = {key: value for key, value in own.items() if value is not None}
    return training.model_copy(update=given | {"phases": None})
