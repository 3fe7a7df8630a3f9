"""Scores of blocks on a text, against the model run plainly with one block left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

import shrink
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model, open_model
from deepen.planning.scoring import blocks as scoring
from deepen.planning.scoring.blocks import importances, influences

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2", "mixtral", "mamba", "gemma3_text")
IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A tiny model, and the same opened."""
    module = shrink.model(request.param)
    return module, as_model(ModuleSource(module, module.config.to_dict()))


@contextmanager
def seen(block: Any, act: Any) -> Iterator[None]:
    """Let a function of a block's input and output say what the block returns."""
    inputs = []

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"]).clone())

    def leave(_: Any, args: Any, output: Any) -> Any:
        state = act(inputs.pop(), output[0] if isinstance(output, tuple) else output)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handles = [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        block.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_loss(module: Any) -> float:
    with torch.no_grad():
        logits = module(IDS, use_cache=False).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))


@pytest.mark.parametrize("together", [1, 4])
def test_importance_is_the_loss_without_the_block_minus_the_loss(pair, together, monkeypatch):
    module, model = pair
    monkeypatch.setattr(scoring, "_TOGETHER", together)
    found, base = importances(model, IDS, CPU), plain_loss(module)
    for block, importance in zip(
        module.get_submodule(model.blocks_path).children(), found, strict=True
    ):
        with seen(block, lambda before, after: before):
            assert plain_loss(module) - base == pytest.approx(importance, abs=1e-5)


def test_influence_is_one_minus_the_mean_cosine_of_input_and_output(pair):
    module, model = pair
    expected: list[float] = []

    def measure(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        expected.append(1 - float(cosine_similarity(before, after, dim=-1).mean()))
        return after

    found = influences(model, IDS, CPU)
    for block in module.get_submodule(model.blocks_path).children():
        with seen(block, measure):
            plain_loss(module)
    assert found == pytest.approx(expected, abs=1e-5)


def test_only_blocks_above_a_bypassed_one_run_again(llama, monkeypatch):
    """Blocks below a group are not run, and so not fetched."""
    model, fetched = open_model(llama), []
    load = type(model.in_memory.weights).__getitem__

    def counting(self: Any, name: str) -> torch.Tensor:
        fetched.append(name)
        return load(self, name)

    monkeypatch.setattr(scoring, "_TOGETHER", 2)
    monkeypatch.setattr(type(model.in_memory.weights), "__getitem__", counting)
    importances(model, IDS, CPU)
    times = [fetched.count(f"model.layers.{i}.mlp.down_proj.weight") for i in range(6)]
    assert times == [2, 2, 3, 3, 4, 4]


def test_blocks_are_as_they_were_afterwards(llama):
    model = open_model(llama)
    assert importances(model, IDS, CPU) == importances(model, IDS, CPU)
    blocks = model.in_memory.module.get_submodule(model.blocks_path).children()
    assert not any("forward" in vars(block) or block._forward_hooks for block in blocks)
