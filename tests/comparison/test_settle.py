"""What a study leaves open until its base is known: sizes of alternatives, steps of equal FLOPs."""

import pytest
import torch

import tiny
from deepen.base.model import open_model
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.comparison.settle import settle
from deepen.comparison.study import Study, checked
from deepen.planning.partial import lora_parameters, neuron_parameters

PHASES = {"phases": [{"steps": 5}, {"trains": "everything"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and a text."""
    folder = tmp_path_factory.mktemp("settle")
    tiny.save(folder / "base", dtype=torch.float32)
    (folder / "text.txt").write_text(PASSAGE)
    return folder


def study(folder, **changes):
    given = {
        "base": str(folder / "base"),
        "arms": ["base", "lora", "top-blocks", "wider", "solar", "opt-deus"],
        "new_layers": 2,
        "data": {"path": str(folder / "text.txt"), "sequence_length": 32},
        "training": {"max_steps": 60, "batch_size": 2},
        "output": str(folder / "out"),
    }
    return settle(checked(Study.model_validate(given | changes)))


def test_alternatives_train_as_many_parameters_as_the_new_blocks_or_the_most_that_are_not_more(
    folder,
):
    made = study(folder)
    model = open_model(made.base)
    wanted, blocks = 2 * model.parameters_of(0), range(model.depth)
    part = {arm.name: arm.training for arm in made.arms}
    assert part["top-blocks"] == {"trains": [model.depth - 2, model.depth - 1]}
    rank, neurons = part["lora"]["lora"]["rank"], part["wider"]["neurons"]
    adapters = [lora_parameters(model, some, blocks) for some in (rank, rank + 1)]
    assert adapters[0] <= wanted < adapters[1]
    assert neuron_parameters(model, neurons) <= wanted < neuron_parameters(model, neurons + 1)
    assert [arm.name for arm in made.arms] == [arm.method for arm in made.arms]
    assert settle(made) == made, "what is settled stays as it is"


def test_sizes_that_are_named_are_taken(folder):
    arms = [
        {"method": "lora", "options": {"rank": 3, "alpha": 5, "blocks": 2}},
        {"method": "top-blocks", "options": {"blocks": 3}},
        {"method": "wider", "options": {"neurons": 7}},
    ]
    made = study(folder, arms=arms)
    depth = open_model(made.base).depth
    assert made.arms[1].training == {
        "lora": {"rank": 3, "alpha": 5, "blocks": [depth - 2, depth - 1]}
    }
    assert made.arms[2].training == {"trains": list(range(depth - 3, depth))}
    assert made.arms[3].training == {"neurons": 7}


def test_a_number_of_parameters_needs_no_grown_arm(folder):
    block = open_model(folder / "base").parameters_of(0)
    made = study(folder, arms=["top-blocks"], parameters=3 * block + 1)
    assert len(made.arms[1].training["trains"]) == 3
    assert len(study(folder, arms=["top-blocks"], parameters=1).arms[1].training["trains"]) == 1


def test_equal_flops_give_every_arm_what_the_reference_costs(folder):
    own = {"method": "opt-deus", "placement": "bottom", "training": {"learning_rate": 0.5}}
    arms = ["base", "lora", "top-blocks", "wider", "solar", "opt-deus", own]
    made = study(folder, arms=arms, budget="flops")
    steps = {arm.name: arm.training["max_steps"] for arm in made.arms}
    assert steps["base"] == 60
    assert steps["solar"] < 60, "it is deeper, and trains everything"
    assert 60 < steps["lora"] < 90, "everything but weight gradients"
    assert steps["top-blocks"] > steps["opt-deus"] > steps[made.arms[-1].name]
    assert made.arms[-1].training["learning_rate"] == 0.5
    twice = {"method": "opt-deus", "training": {"batch_size": 4}}
    reading = {"method": "base", "label": "careful", "training": {"protect": {"path": "old.txt"}}}
    both = study(folder, arms=["base", reading], budget="flops").arms
    # A pass over 4096 tokens, 64 to a step, costs a third of training on them.
    assert both[1].training["max_steps"] == 60 - -(-4096 // 64 // 3)
    phases = [{"trains": "new_blocks", "steps": 0.7}, {"trains": "everything"}]
    phased = {"method": "opt-deus", "label": "phased", "training": {"phases": phases}}
    whole = {"method": "opt-deus", "label": "whole", "training": {"trains": "everything"}}
    made = study(folder, arms=["base", "opt-deus", whole, phased], budget="flops").arms
    plain, all_of_it, between = (arm.training["max_steps"] for arm in made[1:])
    assert all_of_it < between < plain
    # In units of all that there is to spend, a seventh and two tenths of a step rounded.
    first, then = round(0.7 * between), between - round(0.7 * between)
    assert 1 - 1.5 / all_of_it < first / plain + then / all_of_it < 1 + 1.5 / all_of_it
    half = study(folder, arms=["base", twice], budget="flops").arms[1].training["max_steps"]
    assert half == steps["opt-deus"] // 2, "a step of twice the sequences costs twice as much"
    tokens = study(folder, arms=arms, budget="flops", training={"max_tokens": 60 * 64 + 1})
    assert tokens.arms[0].training["max_steps"] == 1, "64 sequences of 32 in a step by default"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": ["lora", "solar"]}, "No grown arm of the study says how many parameters"),
        ({"arms": [{"method": "lora", "options": {"rnak": 3}}]}, "did you mean 'rank'"),
        ({"arms": [{"method": "base", "options": {"rank": 3}}]}, "Unknown key 'rank'"),
        ({"arms": [{"method": "lora", "placement": "top"}]}, "is not grown; leave placement"),
        ({"arms": [{"method": "top-blocks", "options": {"blocks": 99}}]}, "no 99 blocks"),
        ({"parameters": 2}, "2 parameters are too few for adapters of rank 1"),
        ({"budget": "flops", "training": {"epochs": 1}}, "instead of epochs"),
        ({"arms": [{"method": "opt-deus", "training": PHASES}, "lora"]}, "No grown arm"),
        ({"arms": ["opt-deus"], "training": {"max_steps": 5} | PHASES}, "Phase 2 .* run's 5 step"),
        (
            {
                "arms": [{"method": "opt-deus", "training": PHASES}],
                "training": {"max_steps": 3, "batch_size": 2},
                "budget": "flops",
            },
            "phases of training.phases have 5 steps together",
        ),
    ],
)
def test_mistakes_are_one_sentence(folder, changes, sentence):
    with pytest.raises(DeepenError, match=sentence):
        study(folder, **changes)
