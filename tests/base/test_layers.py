"""Linear layers of a block: those that adapters sit on are called, and reached by gradients."""

import pytest
import torch

import shrink
from cases import CASES
from deepen.base.checkpoint import ModuleSource
from deepen.base.layers import adaptable_layers
from deepen.base.model import as_model

MIXERS = ["mamba", "falcon_mamba", "mamba2", "bamba", "granitemoehybrid-dense", "falcon_h1"]
MIXERS += ["olmo_hybrid", "qwen3_5_text", "lfm2", "recurrent_gemma"]


@pytest.mark.parametrize("family", MIXERS)
def test_layers_for_adapters_are_called_and_have_gradients(family: str) -> None:
    model_type, settings = CASES[family]
    module = shrink.model(model_type, **settings).train()
    model = as_model(ModuleSource(module, module.config.to_dict()))
    paths = [layer.path for i in range(model.depth) for layer in adaptable_layers(model, i)]
    called = set[str]()
    for path in paths:
        module.get_submodule(path).register_forward_hook(lambda *_, path=path: called.add(path))
    tokens = torch.arange(16).reshape(2, 8) + 3
    module(tokens, labels=tokens).loss.backward()
    assert called == {*paths}
    assert all(module.get_submodule(path).weight.grad.any() for path in paths)
