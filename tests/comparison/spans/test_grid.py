"""The spans of a scan, what they cost, and what is refused before anything runs."""

import pytest

import deepen
import shrink
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.common.errors import DeepenError
from deepen.comparison.spans.grid import Span, check_budget, cost_of, grid_of, spans_of
from deepen.planning.cost import forward_flops_per_token, reading_flops_per_token
from deepen.records.scan import ScanRequest

NAMES = ("--longest", "--stride")


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("longest", [1, 3, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_grid_against_plain_counting(depth, longest, stride):
    expected = {
        (first, last)
        for first in range(depth)
        for last in range(first, depth)
        if first % stride == 0 and (last + 1) % stride == 0 and last - first < longest
    }
    spans = spans_of(depth, longest, stride)
    assert len(spans) == len(set(spans))
    assert set(spans) == expected
    lasts = [span.last for span in spans]
    assert lasts == sorted(lasts), "spans that share a state are neighbours"


def test_a_span_costs_itself_and_what_lies_above_it(llama):
    model = open_model(llama)
    whole = reading_flops_per_token(model, 6, 32)
    block = forward_flops_per_token(model, [0], 32)
    head = whole - 6 * block
    one = cost_of(model, [Span(2, 3)], 3, 32)
    # The base, its blocks 0 to 3 again for the state above 3, the span three times, blocks 4 and 5.
    assert one.block_runs == 6 + 4 + 2 * 3 + 2
    assert one.passes == pytest.approx((18 * block + 2 * head) / whole)


def test_a_budget_that_does_not_do_names_one_that_does(llama):
    model, request = open_model(llama), ScanRequest(longest=4)
    cost = cost_of(model, spans_of(6, 4, 1), 1, 32)
    check_budget(model, request, cost, cost.passes, 32)
    check_budget(model, request, cost, None, 32)
    with pytest.raises(DeepenError, match=rf"takes {cost.passes:.1f} passes .* --budget is 8; "):
        check_budget(model, request, cost, 8.0, 32)
    try:
        check_budget(model, request, cost, 8.0, 32)
    except DeepenError as error:
        longest, stride = (int(str(error).split(f"{name} ")[1].split()[0]) for name in NAMES)
    fits = cost_of(model, spans_of(6, longest, stride), 1, 32)
    assert fits.passes <= 8
    for budget in (0.5, 0.0, -1.0, float("nan")):
        with pytest.raises(DeepenError, match=r"no grid fits|number of passes above 0"):
            check_budget(model, request, cost, budget, 32)


def test_spans_that_grow_refuses_are_left_out():
    """GLM-4.5 counts its first blocks without experts, and copies must leave them together."""
    module = shrink.model("glm4_moe", first_k_dense_replace=2)
    grid = grid_of(as_model(ModuleSource(module, module.config.to_dict())), ScanRequest(longest=3))
    assert grid.left_out > 0
    assert Span(1, 2) not in grid.spans
    assert Span(2, 3) in grid.spans
    with pytest.raises(DeepenError) as refused:
        deepen.grow_model(module, method="repeat", options={"span": "1-2"})
    assert "would not leave them together" in grid.because
    assert "would not leave them together" in str(refused.value)


def test_a_grid_without_spans_is_one_sentence(llama):
    with pytest.raises(DeepenError, match="No span of at most 2 of 6 blocks begins and ends"):
        grid_of(open_model(llama), ScanRequest(longest=2, stride=3))
