"""Runs are divided into phases as the recipe says, or refused."""

from pathlib import Path
from typing import Any

import pytest

from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.training.phases.phase import Phase, borders, ends, parts, phases_of
from deepen.training.recipe import TrainingConfig


def asked(*steps: float | None, **training: Any) -> TrainingConfig:
    phases = [{"steps": given} if given else {} for given in steps]
    return TrainingConfig.model_validate({"phases": phases or None} | training)


@pytest.mark.parametrize(
    ("given", "steps", "expected"),
    [
        ([], 10, [0, 10]),
        ([None], 10, [0, 10]),
        ([0.7, None], 24, [0, 17, 24]),
        ([0.7, 0.3], 24, [0, 17, 24]),
        ([17, None], 24, [0, 17, 24]),
        ([0.1, 0.2, 0.7], 10, [0, 1, 3, 10]),
        ([2, 0.5, 3], 10, [0, 2, 7, 10]),
        ([0.5, None], 2, [0, 1, 2]),
    ],
)
def test_steps_are_shares_or_numbers(given: list[float], steps: int, expected: list[int]) -> None:
    assert ends(asked(*given), steps) == expected == borders(asked(*given), steps)


@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.7, 0.999])
def test_a_longer_run_has_no_shorter_phase(share: float) -> None:
    before = borders(asked(share, None), 1)
    for steps in range(2, 200):
        after = borders(asked(share, None), steps)
        assert abs(after[1] - share * steps) <= 0.5
        assert all(new - old in (0, 1) for old, new in zip(before, after, strict=True))
        before = after


@pytest.mark.parametrize(
    ("given", "steps", "said"),
    [
        ([0.7, 0.5], 10, "have 12 steps together, and the run has 10"),
        ([4, 4], 10, "have 8 steps together, and the run has 10"),
        ([12, None], 10, "have 12 steps together, and the run has 10"),
        ([10, None], 10, "Phase 2 of training.phases has none of the run's 10 steps"),
        ([0.01, None], 10, "Phase 1 of training.phases has none of the run's 10 steps"),
    ],
)
def test_phases_that_do_not_fit_are_refused(given: list[float], steps: int, said: str) -> None:
    with pytest.raises(DeepenError, match=said):
        ends(asked(*given), steps)


def divided(folder: Path, training: TrainingConfig, steps: int = 10) -> list[Phase]:
    model = open_model(folder)
    return phases_of(training, parts(model.source.config, model.depth, training, "m"), steps)


def test_a_run_without_phases_is_one(grown: Path) -> None:
    training = TrainingConfig(also=("norm",))
    (phase,) = divided(grown, training)
    assert (phase.begin, phase.end, phase.ramp, phase.training) == (0, 10, 0, training)
    assert phase.trains == phase.so_far
    assert (phase.trains.blocks, phase.trains.outside) == ((4, 6), {"norm"})


def test_what_a_phase_does_not_say_the_recipe_says(grown: Path) -> None:
    phases = [
        {"steps": 0.5, "learning_rate": 3e-3},
        {"steps": 2, "trains": [1], "also": []},
        {"trains": "everything", "ramp": 0.5},
    ]
    training = TrainingConfig.model_validate(
        {"also": ["norm"], "learning_rate": 1e-3, "phases": phases}
    )
    first, second, third = divided(grown, training)
    assert (first.trains.blocks, first.trains.outside) == ((4, 6), {"norm"})
    assert (second.trains.blocks, second.trains.outside) == ((1,), frozenset())
    assert (second.so_far.blocks, second.so_far.outside) == ((1, 4, 6), {"norm"})
    assert not second.so_far.everything
    assert third.so_far.everything
    assert [(p.begin, p.end) for p in (first, second, third)] == [(0, 5), (5, 7), (7, 10)]
    assert [p.training.learning_rate for p in (first, second, third)] == [3e-3, 1e-3, 1e-3]
    assert (first.ramp, third.ramp) == (0, 1.5)


def test_a_phase_must_have_something_to_train(grown: Path) -> None:
    training = TrainingConfig.model_validate({"phases": [{"steps": 2}, {"trains": []}]})
    with pytest.raises(DeepenError, match="Nothing would be trained"):
        divided(grown, training)
