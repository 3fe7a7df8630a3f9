"""Which parents new blocks get in stacks of unlike blocks."""

from dataclasses import replace

import pytest

import shrink
from deepen.base.anatomy import FAMILIES, Anatomy, dissect
from deepen.common.errors import DeepenError
from deepen.planning.parents import with_parents
from deepen.planning.plan import Insert, Keep, Plan, insert_after

JAMBA = {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2}


def anatomy_of(model_type, **settings) -> tuple[Anatomy, dict]:
    """Dissect a tiny model, and return its config with it."""
    model = shrink.model(model_type, **settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    return dissect(FAMILIES[model_type], config, shapes), config


def types(letters: str) -> tuple[Anatomy, dict]:
    """Make blocks whose types are single letters; upper-case ones are of another kind."""
    anatomy, config = anatomy_of("qwen2", num_hidden_layers=1)
    small = anatomy.blocks[0]
    large = replace(small, kind="large")
    blocks = tuple(large if letter.isupper() else small for letter in letters)
    made = replace(anatomy, blocks=blocks, types=tuple((letter,) for letter in letters))
    return made, config | {"num_hidden_layers": len(letters)}


def parents(letters: str, gap: int, t: float = 0.5) -> tuple[int, int]:
    """Return the parents of one new block above block ``gap``."""
    anatomy, config = types(letters)
    blocks: list[Keep | Insert] = [Keep(index) for index in range(len(letters))]
    blocks.insert(gap + 1, Insert(gap, gap + 1, t))
    plan = with_parents(Plan(len(letters), tuple(blocks)), anatomy, config)
    (insert,) = plan.inserts
    assert insert.t == t
    return insert.below, insert.above


@pytest.mark.parametrize(
    ("letters", "gap", "expected"),
    [
        ("aaaa", 1, (1, 2)),  # alike: as they are
        ("abab", 1, (1, 3)),  # b and b are as near as a and a: like the block below
        ("aabaa", 1, (1, 3)),  # only a has a partner
        ("abbba", 0, (0, 4)),  # however far
        ("abcbca", 2, (2, 4)),  # nearest of several
        ("cabba", 1, (1, 4)),
        ("babaab", 3, (3, 4)),
        ("BaBa", 2, (1, 3)),  # a kind without a partner above is left out
    ],
)
def test_the_nearest_two_of_one_type(letters, gap, expected):
    assert parents(letters, gap) == expected


def test_no_pair_is_nearer_and_alike():
    for letters in ("abcabcab", "aabbaabb", "abbcabca"):
        for gap in range(len(letters) - 1):
            pairs = [
                (upper - lower, lower, upper)
                for lower in range(gap + 1)
                for upper in range(gap + 1, len(letters))
                if letters[lower] == letters[upper]
            ]
            lower, upper = parents(letters, gap)
            assert lower <= gap < upper
            if pairs:
                assert letters[lower] == letters[upper]
                assert upper - lower == min(pairs)[0]
            else:
                assert (lower, upper) == (gap, gap + 1)


@pytest.mark.parametrize("t", [0.25, 0.75])
def test_two_of_one_kind_do_where_no_type_has_a_pair(t):
    assert parents("abc", 1, t) == (1, 2)


def test_different_tensors_are_refused():
    with pytest.raises(DeepenError, match=r"^Blocks 0 \(block\) and 1 \(large\) have different"):
        parents("aB", 0)


def test_copies_stay_copies():
    anatomy, config = types("aBa")
    plan = insert_after(3, [0, 1, 2], copies=True)
    assert with_parents(plan, anatomy, config) == plan


def distances(plan: Plan) -> dict[tuple[int, int], list[float]]:
    """Return how far the new blocks between the same two parents lie between them."""
    found: dict[tuple[int, int], list[float]] = {}
    for insert in plan.inserts:
        found.setdefault((insert.below, insert.above), []).append(insert.t)
    return found


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("periods", [1, 2])
def test_a_rule_on_the_index_is_met_by_whole_periods(periods, copies):
    anatomy, config = anatomy_of("jamba", num_hidden_layers=12, **JAMBA)
    plan = with_parents(insert_after(12, [5] * 6 * periods, copies=copies), anatomy, config)
    grown = shrink.config("jamba", num_hidden_layers=12 + 6 * periods, **JAMBA)
    kinds = [anatomy.blocks[parent].kind for parent in plan.type_parents]
    assert [k.startswith("attention") for k in kinds] == [
        kind == "attention" for kind in grown.layers_block_type
    ]
    assert ["experts" in k for k in kinds] == [n > 1 for n in grown.layers_num_experts]
    for (below, above), ts in distances(plan).items():
        assert below <= 5
        assert (below == above) == copies
        if not copies:
            assert above >= 6
            assert ts == pytest.approx([(k + 1) / (len(ts) + 1) for k in range(len(ts))])


@pytest.mark.parametrize(
    ("depth", "gap", "advice"),
    [
        (18, 8, "after:8,8,8,8,8,8."),
        (18, 16, "after:11,11,11,11,11,11."),  # a whole period above
        (18, 0, "after:5,5,5,5,5,5."),  # and below
        (8, 4, "after:7,7,7,7,7,7 with --method llama-pro."),  # nowhere both
    ],
)
def test_a_rule_on_the_index_that_would_be_broken_is_refused(depth, gap, advice):
    anatomy, config = anatomy_of("jamba", num_hidden_layers=depth, **JAMBA)
    with pytest.raises(DeepenError, match=r"would become something else at index") as caught:
        with_parents(insert_after(depth, [gap], copies=False), anatomy, config)
    assert str(caught.value).endswith(
        f"insert whole periods of 6 new blocks, for example --placement {advice}"
    )
    copies = "llama-pro" in advice
    gaps = [int(index) for index in advice[6:].split(" ")[0].strip(".").split(",")]
    plan = with_parents(insert_after(depth, gaps, copies=copies), anatomy, config)
    assert plan.depth == depth + 6


def test_a_first_block_that_is_unlike_all_others_is_not_copied():
    anatomy, config = anatomy_of("rwkv", rescale_every=0)
    above = with_parents(insert_after(6, [1, 3], copies=True), anatomy, config)
    assert above == insert_after(6, [1, 3], copies=True)
    for copies in (True, False):
        with pytest.raises(DeepenError, match=r"a new block above block 0 would be of a kind"):
            with_parents(insert_after(6, [0], copies=copies), anatomy, config)


def test_the_nearest_pair_is_found_as_by_trying_all():
    kinds = "abcacbbca" * 3
    for gap in range(len(kinds) - 1):
        found = parents(kinds, gap)
        pairs = [
            (upper - lower, kinds[lower] != kinds[gap], lower, upper)
            for lower in range(gap + 1)
            for upper in range(gap + 1, len(kinds))
            if kinds[lower] == kinds[upper]
        ]
        assert found == min(pairs)[2:]
