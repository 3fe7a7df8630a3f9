"""Growing along a rule: whatever it makes of the new depth, kept blocks stay what they are."""

import itertools
import re

import pytest

import shrink
from deepen.base.anatomy import FAMILIES
from deepen.common.errors import DeepenError
from deepen.planning.pattern import follows_rule, listed_types, rule_of, spread_periods
from deepen.planning.stages import uneven_stages

FAMILIES_WITH_A_RULE = {
    "gemma3_text": 18,
    "cohere2": 12,
    "smollm3": 12,
    "gpt_oss": 8,
    "qwen3_next": 12,
    "exaone4": 14,
    "lfm3": 16,
    "deepseek_v32": 9,
}


def letters(text: str):
    """Return a rule that repeats letters, and goes on after the last whole period."""
    return lambda depth: [*itertools.islice(itertools.cycle(text), depth)]


def grown_types(depth, gaps, rule):
    """Return the rule's types of the new blocks, after checking those of the kept ones."""
    target, base = rule(depth + len(gaps)), rule(depth)
    kept = [index + sum(gap < index for gap in gaps) for index in range(depth)]
    assert [target[place] for place in kept] == base
    return {place: target[place] for place in range(len(target)) if place not in kept}


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(
    ("pattern", "depth"),
    [("sssf", 12), ("sssf", 14), ("fsss", 12), ("ab", 8), ("abc", 9), ("sssssf", 18), ("aab", 7)],
)
def test_kept_blocks_stay_and_new_ones_lie_between_two_of_their_type(pattern, depth, copies):
    rule, base = letters(pattern), letters(pattern)(depth)
    fitting = 0
    for new in range(1, depth + 1):
        try:
            gaps = spread_periods(depth, new, rule, copies=copies)
        except DeepenError as refused:
            assert "ask for" in str(refused)  # noqa: PT017
            assert new % len(pattern)
            continue
        fitting += 1
        assert len(gaps) == new
        assert gaps == sorted(gaps)
        new_types = grown_types(depth, gaps, rule)
        for gap, kind in zip(gaps, new_types.values(), strict=True):
            assert kind in base[: gap + 1]
            assert copies or kind in base[gap + 1 :]
    assert fitting >= depth // len(pattern) - 1


def test_new_blocks_are_spread_where_the_rule_leaves_room():
    gaps = spread_periods(8, 4, letters("ab"), copies=False)
    assert [gaps.count(gap) for gap in sorted({*gaps})] == [2, 2]
    gaps = spread_periods(18, 6, letters("sssssf"), copies=False)
    assert max(gaps.count(gap) for gap in gaps) <= 3
    assert max(gaps) - min(gaps) >= 4


@pytest.mark.parametrize(("depth", "new"), [(18, 6), (12, 6), (24, 12), (6, None)])
def test_the_default_is_the_most_that_is_no_more_than_half(depth, new):
    if new is None:  # one block without a window has none of its type above it
        with pytest.raises(DeepenError, match="choose another placement"):
            spread_periods(depth, None, letters("sssssf"), copies=False)
        return
    assert len(spread_periods(depth, None, letters("sssssf"), copies=False)) == new


@pytest.mark.parametrize("rule", [None, letters("a"), lambda depth: None])
def test_without_a_pattern_it_is_refused(rule):
    with pytest.raises(DeepenError, match=r"^Placement 'periods' repeats .* none that a rule"):
        spread_periods(8, None, rule, copies=False)


def test_a_number_that_is_no_period_names_those_that_are():
    with pytest.raises(DeepenError, match=r"4 new layers are none; ask for 6 or 12\.$"):
        spread_periods(18, 4, letters("sssssf"), copies=False)


@pytest.mark.parametrize("family", FAMILIES_WITH_A_RULE)
def test_transformers_own_rule_is_found_and_followed(family):
    depth, table = FAMILIES_WITH_A_RULE[family], FAMILIES[family]
    config = shrink.config(family, num_hidden_layers=depth).to_dict()
    rule = rule_of(config, config, table)
    assert rule is not None
    assert rule(depth) == listed_types(config, table)
    assert len({*rule(depth)}) > 1
    gaps = spread_periods(depth, None, rule, copies=False)
    grown_types(depth, gaps, rule)
    deeper = shrink.config(family, num_hidden_layers=depth + len(gaps)).to_dict()
    assert rule(depth + len(gaps)) == listed_types(deeper, table)
    assert follows_rule(config, config, table, deeper)
    odd = {f: v[:1] + v for f, v in config.items() if f in table.per_layer_lists and v}
    odd[table.depth_field] = depth + 1
    assert follows_rule(config, config, table, odd) in (False, family == "deepseek_v32")


def test_lists_that_no_rule_makes_have_none():
    config = shrink.config("gemma3_text", num_hidden_layers=6).to_dict()
    config["layer_types"] = [*reversed(config["layer_types"])]
    assert rule_of(config, config, FAMILIES["gemma3_text"]) is None
    assert follows_rule(config, config, FAMILIES["gemma3_text"], config) is None


@pytest.mark.parametrize(
    ("base", "depth", "found"),
    [
        (32, 48, ""),
        (32, 36, "8 equal .* 32 do; with 8 new layers"),
        (30, 33, "2 equal .* with 2 or 4 new"),
        (32, 33, "2 or 4 or 8 "),
        (31, 33, ""),
    ],
)
def test_a_depth_that_no_longer_divides(base, depth, found):
    sentences = uneven_stages(base, depth)
    assert len(sentences) == bool(found)
    assert not found or re.search(found, sentences[0])
