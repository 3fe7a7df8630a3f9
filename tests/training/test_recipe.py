"""The recipe: what the file says, what is filled in, what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepen.common.errors import DeepenError
from deepen.common.settings import Settings, write_yaml
from deepen.comparison.study import Study
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
        ("training.batch_size=1000000000", "training.batch_size.* less than or equal to"),
        ("training.max_steps=1" + "0" * 20, "training.max_steps.* less than or equal to"),
        ("training.workers=1000000", "training.workers"),
        ("training.warmup=.inf", "training.warmup.* finite"),
        ("training.output_lead=.inf", "training.output_lead"),
        ("training.weight_decay=.inf", "training.weight_decay"),
        ("training.weight_decay=1e999", "training.weight_decay"),
        ("training.block_rate_decay=.inf", "training.block_rate_decay"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("training.betas=[0.9, 1.0]", "training.betas.1"),
        ("training.phases=[]", "training.phases.* at least 1 item"),
        ("training.phases=[{share: 1}]", "Unknown key 'training.phases.0.share'"),
        ("training.phases=[{steps: 0}, {}]", "training.phases.0.steps.* greater than 0"),
        ("training.phases=[{steps: 1e9}, {}]", "training.phases.0.steps.* less than or equal"),
        ("training.phases=[{steps: 1}, {ramp: -1}]", "training.phases.1.ramp"),
        ("training.phases=[{learning_rate: 1e5}]", "training.phases.0.learning_rate"),
        ("training.phases=[{trains: new}]", "training.phases.0.trains"),
        ("training.phases=[{}, {}]", "one of the phases does not say its steps"),
        ("training.phases=[{ramp: 2}]", "the first of the phases has a ramp; it is warmup there"),
        ("data.sequence_length=1", "data.sequence_length.* greater than or equal to 2"),
        ("data.path=[]", "data.path.* at least 1 item"),
        ("data.path=''", "data.path.* at least 1 char"),
        ('data.path="a\\0b"', "data.path.* zero character"),
        ("data.seed=-1", "data.seed"),
        ("seed=99999999999", "'seed'"),
        ("output=''", "'output'"),
        ("output=/", "'output' .* root of the file system"),
        ("seed=" + "9" * 5000, "YAML cannot read"),
        ("seed=2024-13-45", "'seed' .* cannot be '2024-13-45'"),
        ("data=3", "'data' in recipe.yaml cannot be 3"),
    ],
)
def test_what_does_not_fit_is_told(file: Path, override: str, said: str) -> None:
    with pytest.raises(DeepenError, match=said):
        load_recipe(file, [override])


@pytest.mark.parametrize(
    "override",
    [
        "training.lora={rank: 2}",
        "training.neurons=3",
        "training.output_rate_factor=2",
        "training.output_lead=2",
        "training.block_rate_decay=0.9",
    ],
)
def test_phases_go_with_nothing_that_has_one_part(file: Path, override: str) -> None:
    key = override.partition("=")[0].rpartition(".")[2]
    with pytest.raises(DeepenError, match=f"{key} is for one part that trains from beginning"):
        load_recipe(file, ["training.phases=[{steps: 3}, {trains: everything}]", override])


@pytest.mark.parametrize("settings", [Recipe, Study])
def test_every_number_list_and_text_has_bounds(settings: type[Settings]) -> None:
    schema = settings.model_json_schema()
    unbounded = [name for name, part in parts(schema) if not bounded(part)]
    assert {name.rpartition(".")[2] for name in unbounded} <= OPEN
    assert [name for name, part in parts({"a": {"type": "integer", "minimum": 1}})] == [".a"]


def parts(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all that has a type in a JSON schema, with the keys that lead there."""
    if isinstance(schema, list):
        for part in schema:
            yield from parts(part, name)
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number", "array", "string"):
            yield name, schema
        for key, part in schema.items():
            inside = key in ("anyOf", "items", "prefixItems", "properties", "$defs")
            yield from parts(part, name if inside else f"{name}.{key}")


def bounded(part: dict[str, Any]) -> bool:
    """Whether what fits a part of a schema is neither endless nor enormous."""
    kind = part["type"]
    least, most = ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"})
    if kind in ("integer", "number"):
        return bool(least & part.keys()) and bool(most & part.keys())
    if kind == "string":
        return bool({"enum", "const", "maxLength"} & part.keys())
    return "maxItems" in part


OPEN = {
    # Of any size: what is too large diverges, and that is told.
    *("learning_rate", "grid", "rates"),
    # What growth checks, of a text file, and three words.
    *("method", "new_layers", "placement", "calibration", "per_gap", "separator", "also"),
}


def test_an_output_of_links_in_a_circle_is_told(file: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DeepenError, match=r"'output' .* links lead nowhere"):
        load_recipe(file, [f"output={tmp_path / 'loop'}"])


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
