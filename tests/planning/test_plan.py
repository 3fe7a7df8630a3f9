"""Plans as data."""

import pytest

from deepen.common.errors import DeepenError
from deepen.planning.plan import Insert, Keep, Plan, insert_after


def test_json_form_reads_back():
    plan = insert_after(4, [1, 1, 2], copies=False)
    assert plan.to_json() == [0, 1, [1, 2, 1 / 3], [1, 2, 2 / 3], 2, [2, 3, 0.5], 3]
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.new_blocks == [2, 3, 5]
    assert plan.depth == 7


def test_type_comes_from_the_nearest_parent_and_from_below_on_a_tie():
    plan = insert_after(3, [0, 0, 1], copies=False)
    assert plan.type_parents == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "blocks",
    [(Keep(1), Keep(0)), (Keep(0), Keep(0)), (Keep(1),), (Keep(0), Insert(0, 1, 0.5))],
)
def test_a_plan_that_loses_repeats_or_invents_blocks_is_refused(blocks):
    with pytest.raises(ValueError, match="block"):
        Plan(len({b.source for b in blocks if isinstance(b, Keep)}), blocks)


def test_composition_is_growing_twice():
    first = insert_after(3, [0, 1], copies=False)  # 0 a 1 b 2
    second = insert_after(5, [1, 4], copies=True)  # 0 a a' 1 b 2 2'
    both = first.then(second)
    assert both.to_json() == [0, [0, 1, 0.5], [0, 0, 0.0], 1, [1, 2, 0.5], 2, [2, 2, 0.0]]


@pytest.mark.parametrize(
    "broken",
    [
        [0, [0, 1]],
        [0, "x"],
        [1, 0],
        [0, [0, 7, 0.5]],
        None,
        [0, [0, 0, 2.0]],
        [0, [0, 0, float("nan")]],
        [0, [float("inf"), 0, 0.5]],
        [0, [0.5, 0, 0.5]],
        [0, [-1, 0, 0.5]],
        [0, [0, 0, 0, 0]],
    ],
)
def test_a_broken_json_form_is_one_sentence(broken):
    with pytest.raises(DeepenError, match="no valid plan") as error:
        Plan.from_json(broken)
    assert "positional" not in str(error.value)  # Python's own words for a list too long
