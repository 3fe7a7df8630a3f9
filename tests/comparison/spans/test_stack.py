"""A span run again by its blocks, against the model that ``grow`` makes with it."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import deepen
import shrink
from cases import CASES
from deepen.base.anatomy import FAMILIES
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.common.errors import DeepenError
from deepen.comparison.spans import stack as stacks
from deepen.comparison.spans.grid import grid_of
from deepen.comparison.spans.stack import Stack, opened
from deepen.records.scan import ScanRequest

CPU = torch.device("cpu")
IDS = torch.randint(1, shrink.VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(0))
GIVEN = 2
# Masks by type of block, no attention, both, experts, positions learned, tuples, norms behind, and
# keys that one block chooses for the next.
FEW = (
    *("gpt2", "opt", "mixtral", "mamba", "gemma2", "cohere2", "olmo2", "falcon", "bloom"),
    *("qwen3_next", "gpt_oss", "deepseek_v3", "lfm2", "smollm3", "glm_moe_dsa"),
)


def losses(module):
    """Return the loss of each sequence by transformers' own model."""
    with torch.no_grad():
        logits = module(IDS, use_cache=False).logits
    pairs = zip(logits, IDS, strict=True)
    return [float(cross_entropy(row[GIVEN - 1 : -1].float(), ids[GIVEN:])) for row, ids in pairs]


# Every case of every family, and the families that need no case of their own.
ALL = sorted({*CASES, *(FAMILIES.keys() - {family for family, _ in CASES.values()})})


@pytest.mark.parametrize(
    "case", [case if case in FEW else pytest.param(case, marks=pytest.mark.slow) for case in ALL]
)
def test_a_span_run_again_is_the_model_that_grow_makes(case, monkeypatch):
    monkeypatch.setattr(stacks, "_LOGITS", 24 * shrink.VOCABULARY)  # head by head of a sequence
    model_type, settings = CASES.get(case, (case, {}))
    module = shrink.model(model_type, **settings)
    model = as_model(ModuleSource(module, module.config.to_dict()))
    spans = grid_of(model, ScanRequest(longest=2, times=2)).spans
    span = min(spans, key=lambda one: (abs(one.first - 2), -one.length))
    again, above = [*range(span.first, span.last + 1)] * 2, range(span.last + 1, model.depth)
    with opened(model, IDS, CPU) as stack:
        base = stack.losses(stack.top, GIVEN)
        below = stack.run(stack.bottom, range(span.last + 1))
        found = stack.losses(stack.run(below, [*again, *above]), GIVEN)
    assert base == pytest.approx(losses(module), abs=2e-6, rel=5e-7)
    options = {"span": str(span), "times": 2}
    grown = deepen.grow_model(module, method="repeat", options=options)
    assert found == pytest.approx(losses(grown), abs=5e-6, rel=5e-7)
    assert max(abs(a - b) for a, b in zip(base, found, strict=True)) > 1e-3, "it does something"


def test_blocks_below_a_span_are_not_run_again(llama):
    model, ran = open_model(llama), Counter()
    with opened(model, IDS, CPU) as stack:
        for index, block in enumerate(stack._blocks):
            block.mlp.register_forward_hook(lambda *_, index=index: ran.update([index]))
        before = stack.runs
        stack.losses(stack.run(stack.top, [2, 3, 2, 3, 4, 5]), GIVEN)
    assert before == 6
    assert stack.runs - before == 6
    assert ran == {2: 2, 3: 2, 4: 1, 5: 1}


def test_the_model_is_as_it_was_afterwards(llama):
    model, found = open_model(llama), []
    for _ in range(2):
        with opened(model, IDS, CPU) as stack:
            found.append(stack.losses(stack.run(stack.bottom, range(6)), GIVEN))
            assert found[-1] == stack.losses(stack.top, GIVEN)
    assert found[0] == found[1]
    blocks = model.in_memory.module.get_submodule(model.blocks_path).children()
    assert not any("forward" in vars(block) or block._forward_hooks for block in blocks)


def test_weights_that_do_not_fit_are_fetched_again(llama, monkeypatch):
    found = []
    for room in (2**31, 0):
        monkeypatch.setattr(stacks, "_KEPT_BYTES", room)
        with opened(open_model(llama), IDS, CPU) as stack:
            found.append(stack.losses(stack.run(stack.bottom, range(6)), GIVEN))
    assert found[0] == found[1]


class Block(nn.Module):
    """A block that hands on two things."""

    def forward(self, state, second=None):
        return state + 1, state * 2


class Strange(nn.Module):
    """A model that does with its blocks what a stack of them does not."""

    def __init__(self, way):
        super().__init__()
        self.way, self.blocks = way, nn.ModuleList([Block(), Block(), Block()])

    def forward(self, ids, use_cache):
        state, second = ids[..., None].float(), None
        for block in self.blocks[: 1 if self.way == "fewer" else 3]:
            state, made = block(state) if second is None else block(state, second)
            second = made if self.way == "older" and second is None else second
            state = state * 2 if self.way == "between" else state
        return state


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        ("older", "read what blocks further below return"),
        ("between", "have something between them"),
        ("fewer", "do not run one after another"),
    ],
)
def test_blocks_that_make_no_stack_are_one_sentence(way, sentence):
    module = Strange(way)
    with pytest.raises(DeepenError, match=f"The blocks of it {sentence}, so that"):
        Stack(module, list(module.blocks), IDS, "it")
    assert not any(block._forward_hooks for block in module.blocks)
