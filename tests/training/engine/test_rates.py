"""Learning rates of their own reach the parameters that they are meant for, and no others."""

from pathlib import Path

import pytest
import torch

import shrink
import tiny
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.training import train
from deepen.training.engine.rates import Rates, own_rates
from deepen.training.freeze import trainable
from deepen.training.recipe import TrainingConfig
from runs import Make, interrupted, losses

OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
ONE_STEP = {"schedule": "constant", "warmup": 0, "weight_decay": 0, "save_dtype": "float32"}


def rates_of(folder: Path, steps: int = 100, **training: object) -> Rates | None:
    model, config = open_model(folder), TrainingConfig.model_validate(training)
    return own_rates(model, trainable(model.source.config, model.depth, config, "m"), config, steps)


def moved(before: Path, after: Path) -> dict[str, float]:
    """Return how far the farthest entry of each parameter has moved, where any has."""
    start, end = (dict(tiny.load(folder).named_parameters()) for folder in (before, after))
    far = {name: float((end[name] - start[name]).abs().max().detach()) for name in start}
    return {name: distance for name, distance in far.items() if distance}


def test_a_plain_recipe_has_no_rates_of_its_own(grown: Path) -> None:
    assert rates_of(grown) is None


def test_output_projections_and_blocks_have_theirs(grown: Path) -> None:
    rates = rates_of(grown, output_rate_factor=3, block_rate_decay=0.5, output_lead=0.07)
    assert rates is not None
    assert rates.lead == 7
    own = {name: rate for name, rate in rates.of.items() if name.startswith("model.layers.")}
    assert {name.split(".")[2] for name in own} == {"4", "6"}
    for name, rate in own.items():
        output = name.endswith(OUTPUTS)
        assert rate.waits != output
        assert rate.factor == (3 if output else 1) * (1 if ".6." in name else 0.5)


def test_embeddings_are_below_all_blocks_and_the_head_above(llama: Path) -> None:
    rates = rates_of(llama, trains="everything", block_rate_decay=0.5)
    assert rates is not None
    depth = open_model(llama).depth
    assert rates.of["model.embed_tokens.weight"].factor == 0.5**depth
    assert rates.of["model.layers.0.mlp.up_proj.weight"].factor == 0.5 ** (depth - 1)
    assert rates.of["lm_head.weight"].factor == rates.of["model.norm.weight"].factor == 1


@pytest.mark.parametrize(
    ("model_type", "output"),
    [
        ("gemma2", "post_feedforward_layernorm.weight"),
        ("mixtral", "experts.down_proj"),
        ("gpt2", "attn.c_proj.weight"),
    ],
)
def test_outputs_are_what_the_family_s_table_silences(model_type: str, output: str) -> None:
    module = shrink.model(model_type)
    model = as_model(ModuleSource(module, module.config.to_dict()))
    training = TrainingConfig(trains=[1], output_rate_factor=3)
    rates = own_rates(model, trainable({}, model.depth, training, "m"), training, 10)
    assert rates is not None
    three = {name for name, rate in rates.of.items() if rate.factor == 3}
    assert any(name.endswith(output) for name in three)
    assert not any(word in name for name in three for word in ("up_proj", "q_proj", "c_attn"))


def test_adam_s_first_step_is_the_learning_rate_itself(recipe: Make, grown: Path) -> None:
    asked = recipe(max_steps=1, learning_rate=1e-3, output_rate_factor=3, **ONE_STEP)
    record = train(asked, "cpt")
    far = moved(grown, Path(record.output) / "model")
    # Behind outputs of zero nothing else has a gradient yet.
    assert far == {
        f"model.layers.{block}.{name}": pytest.approx(3e-3, rel=1e-3)
        for block in (4, 6)
        for name in OUTPUTS
    }
    assert record.curve[0].learning_rate == 1e-3


def test_rates_fall_block_by_block(recipe: Make, llama: Path) -> None:
    asked = recipe(
        model=llama,
        max_steps=1,
        learning_rate=1e-3,
        trains="everything",
        block_rate_decay=0.5,
        **ONE_STEP,
    )
    far = moved(llama, Path(train(asked, "cpt").output) / "model")
    for block in range(6):
        name = f"model.layers.{block}.mlp.down_proj.weight"
        assert far[name] == pytest.approx(1e-3 * 0.5 ** (5 - block), rel=0.02), name


@pytest.mark.parametrize(("lead", "hidden_moves"), [(2, True), (3, False)])
def test_output_projections_train_alone_at_first(
    recipe: Make, grown: Path, lead: int, hidden_moves: bool
) -> None:
    asked = recipe(max_steps=3, learning_rate=1e-3, output_lead=lead, **ONE_STEP)
    far = moved(grown, Path(train(asked, "cpt").output) / "model")
    assert far.keys() >= {f"model.layers.{block}.{name}" for block in (4, 6) for name in OUTPUTS}
    assert any(not name.endswith(OUTPUTS) for name in far) == hidden_moves


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_factors_of_one_change_nothing(recipe: Make, stage: str) -> None:
    """A lead of a whole step during warm-up from 0 regroups everything and moves nothing."""
    data = {"format": "text", "loss": "all"} if stage == "sft" else {}
    plain = train(recipe(data=data, output="plain", warmup=2), stage)
    apart = train(recipe(data=data, output="apart", warmup=2, output_lead=1), stage)
    assert losses(plain) == losses(apart)


def test_a_killed_run_goes_on_with_its_rates(recipe: Make) -> None:
    settings = {"output_rate_factor": 2.0, "block_rate_decay": 0.7, "output_lead": 4}
    expected = train(recipe(output="whole", **settings), "cpt")
    assert losses(interrupted(recipe, 3, **settings)) == losses(expected)
    assert losses(expected) != losses(train(recipe(output="plain"), "cpt"))
    assert torch.get_default_dtype() == torch.float32
