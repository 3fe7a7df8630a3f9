"""When states are kept: where it saves time, or where the recipe insists and it can be done."""

from pathlib import Path
from typing import Any

import pytest

from deepen.common.errors import DeepenError
from deepen.training import train
from deepen.training.engine.schedule import Schedule
from deepen.training.trunk.wanted import check_possible, pays
from runs import Make


@pytest.mark.parametrize(
    ("data", "steps", "below", "expected"),
    [
        ({}, 6, 4, False),  # nothing is seen twice
        ({}, 26, 4, True),
        ({"cache": "shared"}, 6, 4, True),
        ({"cache": "shared"}, 6, 2, True),
        ({"cache": "shared"}, 6, 1, False),  # an eighth of the blocks
    ],
)
def test_what_pays(
    recipe: Make, data: dict[str, Any], steps: int, below: int, expected: bool
) -> None:
    asked = recipe(data, max_steps=steps)
    schedule = Schedule(asked.training, steps, 32, 99, 0)
    assert pays(asked, below, 8, schedule) == expected
    assert pays(recipe(trunk_cache=True), below, 8, schedule)


def test_what_is_possible(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_possible(recipe(), "cpt", 1)
    assert not check_possible(recipe(), "cpt", 0)
    assert not check_possible(recipe(), "sft", 1)
    assert not check_possible(recipe(trunk_cache=False), "cpt", 1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not check_possible(recipe(), "cpt", 1)
    with pytest.raises(DeepenError, match="under FSDP"):
        check_possible(recipe(trunk_cache=True), "cpt", 1)


def test_recipes_without_a_trunk_are_told_before_anything_is_written(
    recipe: Make, tmp_path: Path
) -> None:
    for settings in ({"trains": "everything"}, {"trains": [0, 4]}, {"also": ["embeddings"]}):
        with pytest.raises(DeepenError, match="block 0, so there is nothing frozen below; leave"):
            train(recipe(trunk_cache=True, **settings), "cpt")
    with pytest.raises(DeepenError, match="cannot be true: it is for pre-training"):
        train(recipe(trunk_cache=True), "sft")
    assert not list(tmp_path.iterdir())
