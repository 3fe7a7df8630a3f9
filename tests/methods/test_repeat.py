"""Repeated spans: index maps of the published cases, bytes, what trains, and what is refused."""

import json
from pathlib import Path

import pytest

import deepen
import shrink
import tiny
from deepen import methods
from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.methods.method import parse_options
from deepen.planning.placement import PlacementRequest, parse
from deepen.planning.plan import Plan
from deepen.training import recipe
from deepen.training.freeze import trainable

REPEAT = methods.get("repeat")


def plan_of(depth: int, new: int | None = None, where: str | None = None, **options) -> Plan:
    placement = parse(where) if where else None
    parsed = parse_options(REPEAT, options)
    return REPEAT.place(PlacementRequest(depth, new, placement, options=parsed))


def sources(plan: Plan) -> list[int]:
    return plan.type_parents


# Case → depth of the base, new layers asked for, options, and the blocks of the stack.
PUBLISHED = {
    "RYS": (80, None, {"span": "45-51"}, [*range(52), *range(45, 80)]),
    "Yi-9B": (32, None, {"span": "12-27"}, [*range(28), *range(12, 32)]),
    "SOLAR": (32, 16, {}, [*range(24), *range(8, 32)]),
    "MIDAS": (12, None, {"span": "4-7"}, [*range(8), *range(4, 12)]),
    "LIDAS": (16, 4, {}, [*range(8), 8, 9, 6, 7, *range(8, 16)]),
    "G_stack": (6, None, {"span": "0-5", "times": 3}, [*range(6)] * 4),
    "interposition": (
        6,
        None,
        {"span": "0-5", "order": "interleaved"},
        [i for i in range(6) for _ in range(2)],
    ),
    "a span thrice, block by block": (
        6,
        None,
        {"span": "2-3", "times": 2, "order": "interleaved"},
        [0, 1, 2, 2, 2, 3, 3, 3, 4, 5],
    ),
    "two spans": (8, 3, {"span": "5,1-2"}, [0, 1, 2, 1, 2, 3, 4, 5, 5, 6, 7]),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_stacks_are_cases_of_it(case):
    depth, new, options, expected = PUBLISHED[case]
    assert sources(plan_of(depth, new, **options)) == expected


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("order", ["stacked", "interleaved"])
def test_every_span_against_a_plain_index_map(depth, times, order):
    for low in range(depth):
        for high in range(low, depth):
            run = list(range(low, high + 1))
            middle = [i for i in run for _ in range(times + 1)]
            if order == "stacked":
                middle = run * (times + 1)
            plan = plan_of(depth, span=f"{low}-{high}", times=times, order=order)
            assert sources(plan) == [*range(low), *middle, *range(high + 1, depth)]


@pytest.mark.parametrize("depth", range(1, 12))
def test_by_default_it_is_solar_wherever_solar_is(depth):
    for new in range(1, depth + 1):
        plan = plan_of(depth, new)
        assert len(plan.new_blocks) == new
        if (depth - new) % 2 == 0:
            assert plan == methods.get("solar").place(PlacementRequest(depth, new))
    assert plan_of(depth) == methods.get("solar").place(PlacementRequest(depth))
    thrice = [block.below for block in plan_of(depth, times=3).inserts]
    assert min(thrice) + max(thrice) == depth - 1
    assert len(thrice) == 3 * len(set(thrice))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"span": "5-3"}, "Span '5-3' is reversed; write 3-5"),
        ({"span": "3-8"}, "has blocks 0 to 7, and the span 3-8 reaches beyond"),
        ({"span": "9"}, "reaches beyond"),
        ({"span": "x"}, "Span 'x' is not of the form LO-HI"),
        ({"span": "-1-3"}, "not of the form LO-HI"),
        ({"span": "1,,2"}, "not of the form LO-HI"),
        ({"span": "1-4,3-6"}, "Block 3 lies in two of the spans"),
        ({"span": "2,2"}, "Block 2 lies in two of the spans"),
        ({"span": "1-3", "new": 4}, "makes 3 new layers, not 4"),
        ({"times": 2, "new": 3}, "makes 3 new layers .* a multiple of 2 up to 16"),
        ({"new": 9}, "up to 8"),
        ({"new": 0}, "makes 0 new layers"),
        ({"new": -2}, "makes -2 new layers"),
        ({"times": 4096}, "at most 4,096 blocks"),
        ({"where": "top"}, "leave out the placement"),
    ],
)
def test_what_does_not_fit_is_one_sentence(how, sentence):
    with pytest.raises(DeepenError, match=sentence):
        plan_of(8, **how)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "mamba"])
def test_copies_are_the_blocks_they_repeat_bit_for_bit(family, tmp_path):
    base, grown = tmp_path / "base", tmp_path / "grown"
    shrink.model(family).save_pretrained(base)
    options = {"span": "1-2", "times": 2, "trains": "nothing"}
    record = deepen.grow(base, grown, method="repeat", options=options)
    assert (record.depth, record.step.trains, record.trainable_parameters) == (10, "nothing", 0)
    model, before, after = open_model(base), FolderSource(base), FolderSource(grown)
    for index, source in enumerate([0, 1, 2, 1, 2, 1, 2, 3, 4, 5]):
        for suffix in model.anatomy.blocks[source].stored:
            ours, theirs = (model.family.name(i, suffix) for i in (index, source))
            assert as_bytes(after.load(ours)).equal(as_bytes(before.load(theirs)))
    verified = deepen.verify(base, grown, sequences=1, length=8)
    assert verified.passed
    assert any("4 of them copies bit for bit" in check.detail for check in verified.checks)
    assert verified.max_abs_logit_difference > 0


def test_silent_copies_keep_the_function(llama, tmp_path):
    options = {"span": "1-3", "output_scale": 0, "trains": "new_blocks"}
    record = deepen.grow(llama, tmp_path / "grown", method="repeat", options=options)
    assert record.trainable_parameters == record.new_parameters
    verified = deepen.verify(llama, tmp_path / "grown")
    assert verified.passed
    assert verified.max_abs_logit_difference == 0
    assert any("but for what they write" in check.detail for check in verified.checks)


def test_what_trains_is_what_was_asked_for(llama, tmp_path):
    options = {"span": "2-3", "trains": "nothing"}
    planned = deepen.plan(llama, method="repeat", options=options)
    assert planned.cost.label == "this plan, if its copies trained"
    deepen.grow(llama, tmp_path / "grown", method="repeat", options=options)
    assert "is not meant to be" in (tmp_path / "grown/README.md").read_text()
    config = json.loads((tmp_path / "grown/config.json").read_text())
    with pytest.raises(DeepenError, match="Nothing would be trained"):
        trainable(config, 8, recipe.TrainingConfig(), "it")
    asked = recipe.TrainingConfig(trains="new_blocks")
    assert trainable(config, 8, asked, "it").blocks == (4, 5)


def test_the_same_bytes_as_solar(llama, tmp_path):
    for method in ("solar", "repeat"):
        deepen.grow(llama, tmp_path / method, method=method, new_layers=4)
    weights = [Path(tmp_path / name / "model.safetensors") for name in ("solar", "repeat")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert deepen.reproduce(tmp_path / "repeat", base=llama).passed
    assert tiny.load(tmp_path / "repeat").config.num_hidden_layers == 10
