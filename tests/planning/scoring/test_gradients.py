"""What a text promises new blocks, against the gradients of a model that was grown."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import deepen
import shrink
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.planning.scoring.gradients import promises

CPU = torch.device("cpu")
IDS = torch.randint(1, shrink.VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))
COPY = {"method": "avg-deus", "options": {"output_scale": 0, "upper_share": 1}}
"""New blocks that are silent copies of the block above them."""
FAMILIES = {
    "llama": {},
    "gpt2": {},
    "mixtral": {},
    "mamba": {},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 6},
}
"""Without a pattern of layer types, by which a block's kind would follow from its place."""


def opened(module: Any) -> Any:
    return as_model(ModuleSource(module, module.config.to_dict()))


def outputs_of(grown: Any, index: int) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Return the parameters of a block that hold silent tensors, and where they hold them."""
    model = opened(grown)
    block = model.in_memory.anatomy.blocks[index]
    parameters = dict(grown.get_submodule(model.blocks_path)[index].named_parameters())
    masks: dict[str, torch.Tensor] = {}
    for name, spec in block.block.items():
        if spec.silent is not None:
            suffix = block.places[name].suffix
            mask = masks.setdefault(suffix, torch.zeros_like(parameters[suffix]))
            block.places[name].view(mask, block.sizes).fill_(1)
    return [(parameters[name], mask) for name, mask in masks.items()]


def gradients(grown: Any, outputs: Any, ids: torch.Tensor) -> Any:
    logits = grown(ids, use_cache=False).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return torch.autograd.grad(loss, [one for one, _ in outputs], materialize_grads=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_promise_is_what_the_grown_models_own_gradients_say(family):
    module = shrink.model(family, **FAMILIES[family])
    found = promises(opened(module), IDS, CPU)
    for gap in (0, module.config.num_hidden_layers - 2):
        grown = deepen.grow_model(module, placement=f"after:{gap}", **COPY)
        outputs = outputs_of(grown, gap + 1)
        own, others = (gradients(grown, outputs, IDS[first::2]) for first in (0, 1))
        fall = sum(
            float((a.sign() * b * mask).sum())
            for a, b, (_, mask) in zip(own, others, outputs, strict=True)
        )
        assert found[gap] == pytest.approx(fall, rel=1e-3, abs=1e-4)


def test_the_open_gap_takes_a_copy_of_the_last_block():
    module = shrink.model("llama")
    found = promises(opened(module), IDS, CPU)
    last = module.config.num_hidden_layers - 1
    grown = deepen.grow_model(module, method="llama-pro", placement=f"after:{last}")
    outputs = outputs_of(grown, last + 1)
    own, others = (gradients(grown, outputs, IDS[first::2]) for first in (0, 1))
    fall = sum(float((a.sign() * b).sum()) for a, b in zip(own, others, strict=True))
    assert len(found) == last + 1
    assert found[last] == pytest.approx(fall, rel=1e-3)


def test_a_text_that_is_learned_promises_more_than_one_that_is_not():
    """Sequences that are all alike promise each other more than other ones do."""
    model = opened(shrink.model("llama"))
    alike = promises(model, IDS[:1].expand(4, -1), CPU)
    others = promises(model, IDS, CPU)
    assert all(a > b for a, b in zip(alike, others, strict=True))
    assert all(a > 0 for a in alike), "a step promises its own sequence to fall"


def test_blocks_are_read_twice_and_left_as_they_were(llama, monkeypatch):
    model, fetched = open_model(llama), []
    load = type(model.in_memory.weights).__getitem__

    def counting(self: Any, name: str) -> torch.Tensor:
        fetched.append(name)
        return load(self, name)

    monkeypatch.setattr(type(model.in_memory.weights), "__getitem__", counting)
    first = promises(model, IDS, CPU)
    times = [fetched.count(f"model.layers.{i}.mlp.down_proj.weight") for i in range(6)]
    assert times == [2] * 6
    assert promises(model, IDS, CPU) == first
    blocks = model.in_memory.module.get_submodule(model.blocks_path).children()
    assert not any("forward" in vars(block) or block._forward_hooks for block in blocks)
