"""Adapters and neurons: FLOPs and parameters are those that torch counts in the module itself."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import Model, as_model
from deepen.common.errors import DeepenError
from deepen.planning.partial import (
    lora_flops_per_token,
    lora_parameters,
    lora_rank,
    neuron_flops_per_token,
    neuron_parameters,
    wider_neurons,
)
from deepen.training.freeze import Trains, adapt, counts, freeze
from deepen.training.recipe import LoraConfig

SEQUENCES, LENGTH = 2, 32
SEQUENTIAL = ["llama", "llama-biased", "qwen3", "gpt2", "gemma3_text", "phi3", "olmo2", "opt"]


def opened(family: str) -> tuple[Any, Model]:
    """Return a tiny module, and the model that it is."""
    if family in tiny.FAMILIES:
        module = tiny.model(family)
    else:
        model_type, settings = CASES[family]
        module = shrink.model(model_type, **settings)
    # torch does not count the CPU's fused attention.
    module.set_attn_implementation("eager")
    return module, as_model(ModuleSource(module, module.config.to_dict()))


def adapted(family: str, trains: Trains) -> tuple[Any, Model]:
    """The same, ready to train a part of itself."""
    module, model = opened(family)
    freeze(module, trains, model.family)
    adapt(module, model, trains, 0)
    return module, model


def counted(module: Any) -> float:
    """Return the FLOPs per token that torch counts."""
    tokens = ids(module)
    with FlopCounterMode(display=False) as counter:
        module.train()(tokens, labels=tokens, use_cache=False).loss.backward()
    return counter.get_total_flops() / tokens.numel()


def ids(module: Any) -> Tensor:
    numbers = torch.arange(SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH)
    return numbers % module.config.vocab_size


@pytest.mark.parametrize("blocks", [(0, 1, 2, 3, 4, 5), (2, 5), (5,)])
@pytest.mark.parametrize("family", SEQUENTIAL)
def test_flops_of_adapters(family: str, blocks: tuple[int, ...]) -> None:
    trains = Trains(False, blocks, frozenset(), lora=LoraConfig(rank=3))
    module, model = adapted(family, trains)
    assert counted(module) == lora_flops_per_token(model, 3, blocks, LENGTH)
    assert counts(module)[1] == lora_parameters(model, 3, blocks)


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_flops_of_neurons(family: str) -> None:
    trains = Trains(False, tuple(range(6)), frozenset(), neurons=5)
    module, model = adapted(family, trains)
    assert counted(module) == neuron_flops_per_token(model, 5, LENGTH)
    assert counts(module)[1] == neuron_parameters(model, 5)


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "cohere", "falcon"])
def test_where_attention_and_ffn_read_one_stream_flops_are_nearly_right(family: str) -> None:
    trains = Trains(False, (1, 4), frozenset(), lora=LoraConfig(rank=3))
    module, model = adapted(family, trains)
    found, expected = counted(module), lora_flops_per_token(model, 3, (1, 4), LENGTH)
    assert found <= expected < 1.03 * found
    neurons = Trains(False, tuple(range(6)), frozenset(), neurons=5)
    module, model = adapted(family, neurons)
    assert counted(module) == neuron_flops_per_token(model, 5, LENGTH)


@pytest.mark.parametrize("parameters", [1_500, 9_999, 10_000])
@pytest.mark.parametrize("family", ["llama-biased", "gpt2", "gemma3_text"])
def test_the_largest_that_fit(family: str, parameters: int) -> None:
    _, model = opened(family)
    rank = lora_rank(model, parameters, [1, 2])
    assert lora_parameters(model, rank, [1, 2]) <= parameters
    assert lora_parameters(model, rank + 1, [1, 2]) > parameters
    neurons = wider_neurons(model, parameters)
    assert neuron_parameters(model, neurons) <= parameters < neuron_parameters(model, neurons + 1)


def test_what_does_not_fit_is_said() -> None:
    _, model = opened("llama")
    with pytest.raises(DeepenError, match=r"100 parameters are too few for adapters of rank 1"):
        lora_rank(model, 100, [0])
    with pytest.raises(DeepenError, match=r"430 parameters .* one neuron .* has 432; allow more"):
        wider_neurons(model, 430)
    _, mixture = opened("mixtral")
    with pytest.raises(DeepenError, match=r"Block 0 of Mixtral.* has experts"):
        wider_neurons(mixture, 10_000)
    with pytest.raises(DeepenError, match=r"experts of block 1 .* lie in one tensor"):
        lora_rank(mixture, 10_000, [1])
