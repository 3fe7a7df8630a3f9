"""Arms: short forms, what they vary, their names."""

import pytest

from deepen.comparison.arm import NOT_GROWN, Arm, written_out
from deepen.records.growth import GrowRequest


def arms(*given):
    return [Arm.model_validate(one) for one in written_out(list(given))]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("lora", "lora"),
        ({"method": "lora", "replay": 0.25}, "lora (replay=0.25)"),
        ({"method": "lora", "options": {"rank": 4}}, "lora (rank=4)"),
        ({"method": "solar", "fine_tuning": {"epochs": 2}}, "solar (fine_tuning.epochs=2)"),
        ({"method": "base", "label": "trained on", "replay": 0.1}, "trained on"),
    ],
)
def test_an_arm_is_called_by_its_method_and_what_is_its_own(given, name):
    (arm,) = arms(given)
    assert arm.name == name
    assert arm.is_grown == (arm.method not in NOT_GROWN)


def test_an_arm_that_varies_something_is_one_for_each_combination():
    vary = {"placement": ["top", "after:3"], "options.output_scale": [0, 1]}
    made = arms("base", {"method": "opt-deus", "options": {"reg": 1}, "vary": vary})
    assert [arm.name for arm in made] == [
        "base",
        "opt-deus (reg=1, output_scale=0, placement=top)",
        "opt-deus (reg=1, output_scale=1, placement=top)",
        "opt-deus (reg=1, output_scale=0, placement=after:3)",
        "opt-deus (reg=1, output_scale=1, placement=after:3)",
    ]


def test_the_values_join_a_label():
    vary = {"placement": ["top", "bottom"], "new_layers": [1]}
    made = arms({"method": "random", "label": "noise", "vary": vary})
    assert [arm.name for arm in made] == ["noise: top, 1", "noise: bottom, 1"]
    assert made[1].request(8, 3) == GrowRequest(
        method="random", new_layers=1, placement="bottom", seed=3
    )


@pytest.mark.parametrize("vary", ["top", {}, {"placement": "top"}])
def test_what_cannot_be_varied_is_no_key_of_an_arm(vary):
    with pytest.raises(ValueError, match="vary"):
        arms({"method": "solar", "vary": vary})
