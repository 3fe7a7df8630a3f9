"""The recipe: what the file says, what is filled in, what is refused."""

from pathlib import Path

import pytest

from deepen.common.errors import DeepenError
from deepen.common.settings import write_yaml
from deepen.training.recipe import Recipe, load_recipe

SMALLEST = """
model: ./grown
data: {path: corpus.txt, sequence_length: 2048}
training: {max_steps: 100, batch_size: 8, learning_rate: 1.0e-3}
seed: 0
output: runs/a
"""
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST)
    return path


def test_the_smallest_recipe_and_overrides(file: Path) -> None:
    recipe = load_recipe(file, ["training.learning_rate=1e-4", "data.streaming=true"])
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.max_steps == 100
    assert recipe.data.streaming


def test_a_resolved_recipe_is_its_own_resolution(file: Path, tmp_path: Path) -> None:
    resolved = load_recipe(file, ["seed=3"]).resolved("sft")
    assert resolved.data.seed == 3
    assert resolved.training.weight_decay == 0.0
    write_yaml(tmp_path / "again.yaml", resolved.model_dump(mode="json"))
    again = load_recipe(tmp_path / "again.yaml")
    assert again == resolved == again.resolved("sft")
    with pytest.raises(DeepenError, match="stage: sft"):
        again.resolved("cpt")


def test_stages_have_their_own_defaults_and_the_budget_is_an_epoch() -> None:
    recipe = Recipe.model_validate({"model": "m", "data": {"path": "p"}, "output": "o"})
    rates = {stage: recipe.resolved(stage).training for stage in ("cpt", "sft")}
    assert rates["cpt"].learning_rate == 2e-4
    assert rates["sft"].learning_rate == 2e-5
    assert {training.epochs for training in rates.values()} == {1.0}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.lr=1", "choose one of|did you mean"),
        ("training.sequence_length=1", "did you mean 'data.sequence_length'"),
        ("training.epochs=2", "max_steps and epochs are both budgets"),
        ("training.micro_batch_size=3", "micro_batch_size 3 does not divide batch_size 8"),
        ("training.max_steps=0", "training.max_steps"),
        ("training.learning_rate=-1", "training.learning_rate"),
        ("training.trains=[1, -2]", "training.trains.1"),
        ("training.schedule=cosin", "schedule"),
        ("data=3", "'data' in recipe.yaml cannot be 3"),
    ],
)
def test_what_does_not_fit_is_told(file: Path, override: str, said: str) -> None:
    with pytest.raises(DeepenError, match=said):
        load_recipe(file, [override])


RECIPES = sorted(path for path in EXAMPLES.glob("*.yaml") if path.name != "study.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_example_is_a_recipe(path: Path) -> None:
    load_recipe(path).resolved("sft" if path.name.startswith("sft") else "cpt")


def test_the_paper_s_numbers_stand_in_the_examples() -> None:
    cpt = load_recipe(EXAMPLES / "cpt-paper.yaml")
    assert (cpt.training.max_steps, cpt.training.batch_size) == (12_100, 64)
    assert cpt.data.sequence_length == 2048
    sft = load_recipe(EXAMPLES / "sft-paper.yaml").resolved("sft")
    assert (sft.training.epochs, sft.training.batch_size) == (1.0, 64)
