"""What a table says is aligned is what ``Matcher`` moves."""

import pytest
import torch

import shrink
from cases import CASES
from deepen.alignment.match import Matcher
from deepen.base.anatomy import FAMILIES, Family, dissect
from deepen.base.anatomy.freedom import FREEDOMS, freedoms
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model

CPU = torch.device("cpu")


def moved(matcher: Matcher) -> set[str]:
    """Say what an alignment moves, where two blocks are as unlike as random ones."""
    words = {"experts"} if matcher.experts else set()
    for unit in matcher.anatomy.units:
        neurons = matcher.neurons(unit)
        if neurons:
            words.add("neurons")
            words |= {"scale"} if (neurons.sign < 0).any() else set()
    heads, match = matcher.anatomy.heads, matcher.heads
    if match is None or heads is None:
        return words
    if not heads.fixed:
        words |= {"groups", "heads"} if 1 < heads.key_value < heads.query else {"heads"}
    key, value = (maps - torch.eye(maps.shape[-1]) for maps in (match.key, match.value))
    words |= {"planes"} if key[:, : heads.rotary, : heads.rotary].abs().any() else set()
    words |= {"keys"} if key[:, heads.rotary :, heads.rotary :].abs().any() else set()
    words |= {"values"} if value.abs().any() else set()
    return words


@pytest.mark.parametrize("case", list(CASES))
def test_words_are_what_is_moved(case):
    model_type, settings = CASES[case]
    model = shrink.model(model_type, **settings)
    base = as_model(ModuleSource(model, model.config.to_dict()))
    kinds = {id(block): index for index, block in enumerate(base.anatomy.blocks)}
    for index in kinds.values():
        block = base.anatomy.blocks[index]
        twin = {
            name: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
            for number, (name, tensor) in enumerate(base.block(index, CPU).items())
        }
        assert set(freedoms(block)) == moved(Matcher(base.block(index, CPU), twin, block))


def test_an_author_who_says_nothing_has_neurons_moved_and_nothing_else():
    model = shrink.model("llama")
    base = as_model(ModuleSource(model, model.config.to_dict()))
    assert freedoms(base.anatomy.blocks[1]) == [w for w in FREEDOMS if w not in ("experts", "keys")]
    silent = Family("llama", FAMILIES["llama"].kinds)
    block = dissect(silent, base.resolved, base.source.shapes).blocks[1]
    assert freedoms(block) == ["neurons"]
    below, above = base.block(1, CPU), base.block(2, CPU)
    for name, tensor in Matcher(below, above, block).aligned():
        if block.block[name].role in ("gate", "up", "ffn_output"):
            axis = block.block[name].axes.index("ffn")
            assert not torch.equal(tensor, below[name])
            tensor, own = (x.movedim(axis, 0) for x in (tensor, below[name]))
            assert sorted(tensor.tolist()) == sorted(own.tolist())
        else:
            assert torch.equal(tensor, below[name])
