"""Where new blocks go."""

import pytest

from deepen import methods
from deepen.common.errors import DeepenError
from deepen.planning.placement import NAMES, PlacementRequest, in_gaps, parse
from deepen.planning.plan import Insert


def place(
    method: str, depth: int, new: int | None = None, where: str | None = None, per_gap: int = 1
):
    request = PlacementRequest(depth, new, parse(where) if where else None, per_gap)
    return methods.get(method).place(request)


def gaps_of(where: str, depth: int, new: int | None, per_gap=1, *, copies=False, scores=None):
    """Return the gap of every new block."""
    request = PlacementRequest(depth, new, parse(where), per_gap, scores)
    return [block.below for block in in_gaps(request, "top", copies=copies).inserts]


@pytest.mark.parametrize(
    ("method", "depth", "new_blocks"),
    [
        ("opt-deus", 32, list(range(16, 47, 2))),  # 11.5B of the paper
        ("opt-deus", 16, list(range(8, 23, 2))),  # 1.72B of the paper
        ("avg-deus", 32, list(range(16, 47, 2))),
        ("lesa", 32, list(range(16, 47, 2))),
        ("llama-pro", 32, list(range(2, 48, 3))),
    ],
)
def test_defaults_are_the_papers(method, depth, new_blocks):
    assert place(method, depth).new_blocks == new_blocks


def test_solar_is_two_overlapping_runs():
    plan = place("solar", 32)
    sources = [b.below if isinstance(b, Insert) else b.source for b in plan.blocks]
    assert sources == [*range(24), *range(8, 32)]
    assert plan.new_blocks == list(range(24, 40))


@pytest.mark.parametrize("depth", range(1, 12))
def test_solar_has_a_default_for_every_depth(depth):
    plan = place("solar", depth)
    assert depth < plan.depth <= 2 * depth
    assert (depth - len(plan.new_blocks)) % 2 == 0


@pytest.mark.parametrize(
    ("where", "new", "gaps"),
    [
        ("top", None, [15, *range(16, 31)]),
        ("top", 3, [28, 29, 30]),
        ("bottom", 3, [0, 1, 2]),
        ("middle", 16, list(range(8, 24))),
        ("middle", 3, [14, 15, 16]),
        ("top-bottom", 16, [*range(8), *range(23, 31)]),
        ("top-bottom", 3, [0, 29, 30]),
        ("uniform", 4, [6, 14, 22, 30]),
        ("after:3,5,4", None, [3, 4, 5]),
        ("after:3,3", 2, [3, 3]),
        ("spread:4-12", None, [4, 6, 8, 10, 12]),
        ("spread:4-13", 3, [4, 6, 8]),
        ("spread:30-30", None, [30]),
    ],
)
def test_gaps_of_32_blocks(where, new, gaps):
    assert gaps_of(where, 32, new) == gaps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 7, 8])
def test_every_number_that_fits_is_spread_evenly_over_valid_gaps(name, copies, depth):
    for per_gap in (1, 2, 3):
        new = 1
        while True:
            try:
                gaps = gaps_of(
                    name, depth, new, per_gap, copies=copies, scores=lambda: list(range(depth))
                )
            except DeepenError as refusal:
                assert "holds" in str(refusal)  # noqa: PT017
                break
            counts = [gaps.count(gap) for gap in set(gaps)]
            assert len(gaps) == new
            assert gaps == sorted(gaps)
            assert set(gaps) <= set(range(depth if copies else depth - 1))
            assert max(counts) <= per_gap
            assert max(counts) - min(counts) <= 1
            new += 1
        assert new > per_gap * max(1, min(depth - 1, depth // 2))


def test_scores_decide_where_they_are_asked_for():
    scores = [0.1, 0.5, 0.2, 0.5, 0.3, 0.0, 0.4]

    def gaps(name, new):
        return gaps_of(name, 8, new, scores=lambda: scores)

    assert gaps("quality", 3) == [1, 3, 6]
    assert gaps("quality", 1) == [3]  # the upper one of two equals
    assert gaps("quality-low", 2) == [0, 5]
    with pytest.raises(DeepenError, match="needs the base's weights"):
        gaps_of("quality", 8, 1)


def test_as_many_gaps_as_stand_out():
    """Nearer to the best score than to the median, and half of the blocks at most."""
    scores = [9.0, 1.0, 5.0, 3.0, 2.9, 5.0, 5.1, 0.9]

    def auto(name: str, depth: int) -> list[int]:
        request = PlacementRequest(depth, None, parse(name), 1, lambda: scores[:depth], auto=True)
        return [block.below for block in in_gaps(request, "top", copies=True).inserts]

    assert auto("importance", 8) == [1, 7]  # median 3.95, best 0.9: up to 2.425
    assert auto("importance-high", 8) == [0]  # from (9 + 3.95) / 2 on
    assert auto("importance", 5) == [1]  # median 3, best 1: up to 2
    assert auto("influence", 1) == [0]


def test_scores_of_blocks_reach_the_open_gap_where_new_blocks_are_copies():
    scores = [3.0, 2.0, 1.0, 0.5]
    for copies, gaps in ((True, [2, 3]), (False, [1, 2])):
        assert gaps_of("importance", 4, 2, copies=copies, scores=lambda: scores) == gaps
    assert gaps_of("influence-high", 4, 2, scores=lambda: scores) == [0, 1]


def test_a_copy_can_stand_below_the_first_block():
    plan = place("llama-pro", 3, None, "after:-1,-1,2")
    assert plan.to_json() == [[0, 0, 0], [0, 0, 0], 0, 1, 2, [2, 2, 0]]


@pytest.mark.parametrize("text", ["top", "spread:4-12", "after:-1,3", "influence-high"])
def test_a_placement_is_written_as_it_is_read(text):
    assert str(parse(text)) == text


def test_several_blocks_in_a_gap_lie_at_equal_steps_between_its_neighbours():
    plan = place("opt-deus", 4, 6, "top", per_gap=3)
    assert [(b.below, b.above, b.t) for b in plan.inserts[:3]] == [
        (1, 2, 0.25),
        (1, 2, 0.5),
        (1, 2, 0.75),
    ]


def test_llama_pro_takes_a_number_that_does_not_divide_the_depth():
    assert place("llama-pro", 10, 4).new_blocks == [2, 6, 9, 13]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("opt-deus", 32, 17), "holds 16 new layers at 1 per gap, not 17; .*--per-gap 2"),
        (("opt-deus", 32, 0), "at least 1 new layer"),
        (("opt-deus", 32, None, "tip"), "Unknown placement 'tip'; did you mean 'top'"),
        (("opt-deus", 32, None, "after:x"), "write for example after:3,4,5"),
        (("opt-deus", 32, None, "after:31"), "no block above it"),
        (("opt-deus", 32, None, "after:32"), "there is no block 32"),
        (("opt-deus", 32, None, "after:-1"), "no block below it"),
        (("llama-pro", 32, None, "after:-2"), "there is no block -2"),
        (("opt-deus", 32, None, "spread:9-3"), "is reversed; write 3-9"),
        (("opt-deus", 32, None, "spread:3"), "not of the form LO-HI"),
        (("opt-deus", 32, None, "spread:3-" + "9" * 5000), "not of the form LO-HI"),
        (("opt-deus", 32, None, "spread:3-31"), "no block above it"),
        (("llama-pro", 32, None, "spread:3-32"), "there is no block 32"),
        (("opt-deus", 32, 6, "spread:4-12"), "holds 5 new layers .* choose another"),
        (("opt-deus", 32, 3, "after:1,2"), "holds 2 new layers, not 3"),
        (("opt-deus", 1), "no gap between two blocks"),
        (("solar", 32, 15), "ask for 14 new layers"),
        (("solar", 32, 33), "adds 1 to 32 layers"),
        (("solar", 32, 16, "top"), "its own rule"),
        (("lesa", 2), "triplets"),
        (("lesa", 32, 2, "after:3,3"), "one block per gap"),
        (("lesa", 32, 20, "top", 2), "one block per gap"),
        (("opt-deus", 32, 4, "top", 0), "at least 1 new block"),
    ],
)
def test_what_does_not_fit_is_refused_with_advice(arguments, sentence):
    with pytest.raises(DeepenError, match=sentence):
        place(*arguments)


@pytest.mark.parametrize(
    ("new", "where", "per_gap"),
    [
        (10**6, None, 10**6),
        (10**20, "uniform", 10**20),
        (10**6, "periods", 1),
        (None, "after:" + ",".join(["0"] * 5000), 1),
        (None, None, 10**20),
    ],
)
def test_a_stack_that_no_machine_holds_is_refused_before_it_is_planned(new, where, per_gap):
    with pytest.raises(DeepenError, match="at most 4,096 blocks"):
        place("llama-pro", 8, new, where, per_gap)
