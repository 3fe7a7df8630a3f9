"""Blocks of other kinds, by their sizes alone, against torch's counters."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import tiny
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model
from deepen.common.errors import DeepenError
from deepen.planning.cost import _flops, shape_of
from deepen.planning.footprint import Shape, TrainingStep, sizes

SEQUENCES, LENGTH, DEPTH, HIDDEN, FFN = 2, 32, 6, 24, 40
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": (
        "gpt_neox.layers",
        {"hidden_dropout": 0.0, "attention_dropout": 0.0, "tie_word_embeddings": False},
    ),
    "mixtral": ("model.layers", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def build(kind: str) -> tuple[Any, Any, Shape]:
    """Build a tiny model; return it, its blocks and its shape."""
    prefix, more = KINDS[kind]
    config = CONFIG_MAPPING[kind](**tiny.SIZES | more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if kind == "mixtral":
        model.set_experts_implementation("eager")
    blocks = model.get_submodule(prefix)
    inside = sum(p.numel() for p in blocks.parameters())
    matrices = sum(p.numel() for p in blocks[0].parameters() if p.dim() > 1)
    idle = 2 * 3 * HIDDEN * FFN if kind == "mixtral" else 0  # two experts of four
    shape = Shape(
        hidden=HIDDEN,
        vocabulary=tiny.VOCABULARY,
        outside=sum(p.numel() for p in model.parameters()) - inside,
        block=inside // DEPTH,
        matrices=matrices,
        active=matrices - idle,
        query=24,
        key_value=12 if kind == "mixtral" else 24,
        heads=4,
        ffn=2 * FFN if kind == "mixtral" else FFN,
    )
    return model.train(), blocks, shape


def loss(model: Any) -> torch.Tensor:
    tokens = torch.arange(SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH) % tiny.VOCABULARY
    return model(tokens, labels=tokens, use_cache=False).loss


def kept_bytes(model: Any) -> int:
    """Measure what a forward pass keeps beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model)
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)


@pytest.mark.parametrize("trained", [range(DEPTH), [1, 3, 5], [5]])
@pytest.mark.parametrize("kind", KINDS)
def test_other_blocks_than_llama_s(kind: str, trained: list[int]) -> None:
    model, blocks, shape = build(kind)
    everything = len(trained) == DEPTH
    model.requires_grad_(everything)
    for index in trained:
        blocks[index].requires_grad_(True)
    found = sizes(shape, DEPTH, trained, everything, TrainingStep(LENGTH, SEQUENCES))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found["gradient_bytes"] == 4 * trainable
    # Exact for Llama's blocks alone: here routers and LayerNorms keep a few things more.
    assert found["activation_bytes"] == pytest.approx(kept_bytes(model), rel=0.25)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        loss(model).backward()
    parts = _flops(shape, DEPTH, trained, LENGTH, through=everything, head=everything)
    expected = sum(part.total for part in parts.values())
    assert counter.get_total_flops() == expected * SEQUENCES * LENGTH


def test_sizes_are_read_off_a_base() -> None:
    model, _, shape = build("mixtral")
    assert shape_of(as_model(ModuleSource(model, model.config.to_dict()))) == shape


def test_what_is_told_from_the_sizes() -> None:
    _, _, neox = build("gpt_neox")
    _, _, mixtral = build("mixtral")
    assert (neox.gated, neox.other, neox.head, neox.key_value_heads) == (False, 0, 6, 4)
    # Its router is a linear layer beside attention and the experts.
    assert (mixtral.gated, mixtral.other, mixtral.head, mixtral.key_value_heads) == (True, 4, 6, 2)


def test_a_block_without_attention_and_ffn() -> None:
    mamba = Shape(hidden=24, vocabulary=320, outside=7704, block=4000, matrices=3984, active=3984)
    assert (mamba.gated, mamba.other, mamba.head, mamba.key_value_heads) == (False, 166, 0, 0)
    parts = _flops(mamba, DEPTH, [4], LENGTH, through=False, head=False)
    assert parts["attention"].total == 0
    assert parts["linear"].total == 2 * 3984 * (DEPTH + 2 + 1)
    step = TrainingStep(LENGTH)
    top, bottom = (
        sizes(mamba, DEPTH, [index], False, step)["activation_bytes"] for index in (5, 0)
    )
    assert 0 < top < bottom


@pytest.mark.parametrize(("length", "sequences"), [(10**20, 1), (8, 10**20), (0, 1), (8, -1)])
def test_a_step_that_no_machine_takes_is_refused(length, sequences):
    with pytest.raises(DeepenError, match="cannot be; ask for 1 to"):
        TrainingStep(length, sequences)
