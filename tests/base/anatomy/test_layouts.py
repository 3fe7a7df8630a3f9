"""A model under other names: any layout is put together from any other."""

import pytest
import torch

import shrink
from deepen.base.anatomy import FAMILIES, dissect
from deepen.base.anatomy.layouts import assemble, missing
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import open_model
from deepen.base.streamed import missing_and_extra


@pytest.fixture(params=["mixtral", "gpt2", "gemma2"])
def pair(request, tmp_path):
    """A live model and the checkpoint that transformers makes of it."""
    model = shrink.model(request.param)
    model.save_pretrained(tmp_path)
    return model, open_model(tmp_path)


def test_memory_from_disk_and_back(pair):
    model, base = pair
    memory = base.in_memory
    state = model.state_dict()
    assert memory.shapes.keys() <= state.keys()
    for name in memory.shapes:
        assert torch.equal(memory.load(name), state[name])
    for name, info in base.source.infos.items():
        made = assemble(name, info.shape, base.anatomy, memory.anatomy, state.__getitem__)
        assert torch.equal(made, base.source.load(name))
    assert missing_and_extra(base) == ([], [])


def test_names_without_the_model_s_own_prefix():
    model = shrink.model("gpt2")
    source = ModuleSource(model.transformer, model.config.to_dict())
    family = FAMILIES["gpt2"]
    bare = dissect(family, model.config.to_dict(), source.shapes)
    assert bare.family.block_prefix == "h."
    assert bare.outside == ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")
    state = model.state_dict()
    whole = dissect(family, model.config.to_dict(), ModuleSource(model, {}).shapes)
    for name in ("transformer.wpe.weight", "transformer.h.3.attn.c_attn.weight"):
        assert torch.equal(
            assemble(name, tuple(state[name].shape), whole, bare, source.load), state[name]
        )


def test_what_is_missing_is_named():
    model = shrink.model("mixtral")
    config = model.config.to_dict()
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    whole = dissect(FAMILIES["mixtral"], config, shapes)
    fewer = {n: (3, *s[1:]) if ".experts." in n else s for n, s in shapes.items()}
    smaller = dissect(FAMILIES["mixtral"], config, fewer)
    name = "model.layers.2.mlp.experts.down_proj"
    assert missing(name, whole, smaller) == [f"{name}[3]"]
    assert missing(name, whole, whole) == []
