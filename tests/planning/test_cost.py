"""Estimates against torch's own counters: FLOPs by FlopCounterMode, bytes by saved-tensor hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from deepen.base.checkpoint import ModuleSource, Source, info_of
from deepen.base.model import Model, as_model
from deepen.common.errors import DeepenError
from deepen.planning.cost import (
    arrangements,
    estimate,
    placements,
    reading_flops_per_token,
    then_everything,
    training_flops_per_token,
)
from deepen.planning.plan import Keep, Plan, insert_after
from deepen.training.engine.checkpointing import checkpoint_blocks

SEQUENCES, LENGTH = 2, 32
# Sizes that no two kinds of activation share.
ODD = {
    "hidden_size": 40,
    "intermediate_size": 88,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 12,
}


def base_of(model: Any) -> Model:
    return as_model(ModuleSource(model, model.config.to_dict()))


def train_only(model: Any, blocks: list[int] | None) -> None:
    """Freeze all but some blocks; ``None`` trains everything."""
    model.train()
    model.requires_grad_(blocks is None)
    for index in blocks or []:
        model.model.layers[index].requires_grad_(True)


def loss(model: Any) -> Tensor:
    tokens = torch.arange(SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH) % tiny.VOCABULARY
    return model(tokens, labels=tokens, use_cache=False).loss


def plan_with(new: list[int], depth: int = 6) -> Plan:
    """Return a plan whose grown model of a given depth has these new blocks."""
    kept = depth - len(new)
    after, below = [], -1
    for index in range(depth):
        if index in new:
            after.append(below)
        else:
            below += 1
    plan = insert_after(kept, after, copies=True)
    assert plan.new_blocks == new
    return plan


@pytest.mark.parametrize("blocks", [None, [5], [1, 3, 5], [3, 4, 5], [1, 2]])
@pytest.mark.parametrize("family", ["llama", "llama-biased", "qwen3"])
def test_flops_are_those_that_torch_counts(family: str, blocks: list[int] | None) -> None:
    model = tiny.model(family)
    # torch does not count the CPU's fused attention.
    model.set_attn_implementation("eager")
    train_only(model, blocks)
    with FlopCounterMode(display=False) as counter:
        loss(model).backward()
    expected = training_flops_per_token(
        base_of(model), blocks or [], 6, LENGTH, trains_everything=blocks is None
    )
    assert counter.get_total_flops() == expected * SEQUENCES * LENGTH


def test_reading_is_a_pass_through_the_whole_model() -> None:
    model = tiny.model()
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss(model)
    expected = reading_flops_per_token(base_of(model), 6, LENGTH) * SEQUENCES * LENGTH
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("family", ["llama", "llama-biased"])
@pytest.mark.parametrize("blocks", [[4], [2, 4], []])
@pytest.mark.parametrize(
    "also", [["head"], ["embeddings"], ["norm"], ["norm", "head"], ["embeddings", "norm", "head"]]
)
def test_flops_of_what_trains_beside_the_blocks(
    family: str, blocks: list[int], also: list[str]
) -> None:
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    train_only(model, blocks)
    parts = {
        "head": model.lm_head,
        "embeddings": model.model.embed_tokens,
        "norm": model.model.norm,
    }
    for part in also:
        parts[part].requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        loss(model).backward()
    expected = training_flops_per_token(
        base_of(model), blocks, 6, LENGTH, trains_everything=False, also=also
    )
    assert counter.get_total_flops() == expected * SEQUENCES * LENGTH


def kept_bytes(model: nn.Module, forward: Callable[[Any], object] = loss) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps: activations, and copies of weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(model)
    sizes = {key: tensor.untyped_storage().nbytes() for key, tensor in kept.items()}
    copies = sum(sizes[key] for key, tensor in kept.items() if tuple(tensor.shape) in shapes)
    return sum(sizes.values()) - copies, copies


@pytest.mark.parametrize("blocks", [None, [5], [1, 3, 5], [3, 4, 5], [1, 2]])
@pytest.mark.parametrize("family", ["llama", "llama-biased", "qwen3"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_those_that_torch_keeps(
    family: str, blocks: list[int] | None, precision: Any
) -> None:
    model = tiny.model(family, **ODD)
    base = base_of(model)
    train_only(model, blocks)
    narrow = precision == "bfloat16"
    for parameter in model.parameters():
        if narrow and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        activations, copies = kept_bytes(model)
    found = estimate(
        base,
        plan_with(blocks or [5]),
        trains="new_blocks" if blocks else "everything",
        sequence_length=LENGTH,
        sequences=SEQUENCES,
        precision=precision,
    )
    # Off by the loss's own scalar, the number of targets.
    assert found.activation_bytes == activations - 4
    assert found.copy_bytes == copies


@pytest.mark.parametrize("blocks", [None, [1, 3, 5], [3, 4]])
@pytest.mark.parametrize("family", ["llama", "llama-biased", "qwen3"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_keeps_what_torch_keeps(
    family: str, blocks: list[int] | None, precision: Any
) -> None:
    model = tiny.model(family, **ODD)
    base = base_of(model)
    train_only(model, blocks)
    narrow = precision == "bfloat16"
    for parameter in model.parameters():
        if narrow and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    checkpoint_blocks(model.model.layers, min(blocks or [0]))
    block = model.model.layers[max(blocks or [5])]

    def forward(model: Any) -> None:
        """Run the model, and then the block that the backward pass is in, once more by itself."""
        given: list[Any] = []
        hook = block.register_forward_pre_hook(lambda *call: given.append(call), with_kwargs=True)
        loss(model)
        hook.remove()
        block.gradient_checkpointing = False
        block(*given[0][1], **given[0][2])

    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        activations, _ = kept_bytes(model, forward)
    found = estimate(
        base,
        plan_with(blocks or [5]),
        trains="new_blocks" if blocks else "everything",
        sequence_length=LENGTH,
        sequences=SEQUENCES,
        precision=precision,
        activation_checkpointing=True,
    )
    assert found.activation_bytes == activations - 4


@pytest.mark.parametrize("family", ["llama", "llama-biased", "qwen3"])
@pytest.mark.parametrize("blocks", [None, [5], [1, 3, 5]])
def test_checkpointing_recomputes_what_torch_recomputes(
    family: str, blocks: list[int] | None
) -> None:
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    train_only(model, blocks)
    checkpoint_blocks(model.model.layers, min(blocks or [0]))
    with FlopCounterMode(display=False) as counter:
        loss(model).backward()
    plan, trains = plan_with(blocks or [5]), "new_blocks" if blocks else "everything"
    plain, found = (
        estimate(
            base_of(model),
            plan,
            trains=trains,
            sequence_length=LENGTH,
            activation_checkpointing=checkpointing,
        )
        for checkpointing in (False, True)
    )
    expected = found.flops_per_token + found.recomputation_flops_per_token
    assert counter.get_total_flops() == expected * SEQUENCES * LENGTH
    assert found.flops_per_token == plain.flops_per_token
    # With one block there is nothing to gain.
    assert (found.activation_bytes < plain.activation_bytes) == (blocks != [5])


class Shapes(Source):
    """A model of which only the shapes exist."""

    name, revision = "shapes", None

    def __init__(self, model: Any) -> None:
        """Describe a model that may lie on the meta device."""
        self.config = model.config.to_dict()
        self.infos = {name: info_of(weight, name) for name, weight in model.named_parameters()}

    def load(self, name: str) -> Tensor:
        raise AssertionError("an estimate reads no weights")


def big_base() -> Model:
    """Return Llama-3.1-8B without its weights."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        return as_model(Shapes(LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)))


def test_placements_of_an_8b_model() -> None:
    rows = placements(big_base(), 16, sequence_length=2048, sequences=4, precision="bfloat16")
    of = {row.label: row for row in rows}
    assert list(of) == ["full training", "solar", "llama-pro spacing", "top", "middle", "bottom"]
    assert {row.depth for row in rows} == {48}
    assert round(of["top"].parameters / 1e9, 1) == 11.5
    # METHODS: 48 + 32 + 16, 48 + 46 + 16 and 48 + 47 + 16 of 144 blocks.
    units = {label: row.relative_blocks * 144 for label, row in of.items()}
    assert units["full training"] == units["solar"] == pytest.approx(144)
    assert units["top"] == pytest.approx(96)
    assert units["llama-pro spacing"] == pytest.approx(110)
    assert units["bottom"] == pytest.approx(111)
    assert of["top"].trained_blocks == list(range(16, 48, 2))
    # AdamW's states are of the new blocks alone.
    new = of["top"].trainable_parameters
    assert (new, of["top"].optimizer_bytes) == (16 * 218112000, 8 * new)
    assert of["solar"].optimizer_bytes == 8 * of["solar"].parameters
    for row in rows:
        assert row.model_validate_json(row.model_dump_json()) == row
        assert row.relative_step_time == pytest.approx(
            row.flops_per_token / of["full training"].flops_per_token
        )
        assert row.relative_bytes == pytest.approx(
            row.total_bytes / of["full training"].total_bytes
        )


def test_two_phases_cost_the_mean_in_the_memory_of_the_larger_one() -> None:
    plan = insert_after(32, range(15, 31), copies=False)
    conditions: Any = {"sequence_length": 512, "activation_checkpointing": True}
    first, then = (
        estimate(big_base(), plan, trains=trains, label="this plan", **conditions)
        for trains in ("new_blocks", "everything")
    )
    both = then_everything(first, then, 0.25)
    assert both.label == "this plan, then everything (25%)"
    assert both.flops_per_token == 0.75 * first.flops_per_token + 0.25 * then.flops_per_token
    parts = both.linear.total + both.attention.total + both.head.total
    assert parts == pytest.approx(both.flops_per_token)
    assert both.relative_step_time == pytest.approx(0.75 * first.relative_step_time + 0.25)
    assert (both.total_bytes, both.relative_bytes) == (then.total_bytes, 1)
    assert both.trainable_parameters == then.parameters
    assert both.model_validate_json(both.model_dump_json()) == both
    for share in (-0.1, 1.1):
        with pytest.raises(DeepenError, match="is no share of the steps"):
            then_everything(first, then, share)


def test_rows_for_any_depth_and_number() -> None:
    for depth in range(2, 9):
        for new in range(1, 2 * depth):
            rows = list(arrangements(depth, new))
            assert {plan.depth for _, plan, _ in rows} == {depth + new}
            labels = [label for label, _, _ in rows]
            assert ("solar" in labels) == (new <= depth and (depth - new) % 2 == 0)
            lowest = {label: plan.new_blocks[0] for label, plan, _ in rows}
            assert lowest["bottom"] <= lowest["middle"] <= lowest["top"]
            assert all(
                sum(isinstance(block, Keep) for block in plan.blocks) == depth
                for _, plan, _ in rows
            )


def test_a_fused_loss_takes_no_logits() -> None:
    plain, fused = (
        estimate(
            big_base(),
            insert_after(32, range(15, 31), copies=False),
            trains="new_blocks",
            sequence_length=128,
            fused_loss=fused,
        )
        for fused in (False, True)
    )
    assert fused.loss_bytes == 0 < plain.loss_bytes
    assert plain.activation_bytes - fused.activation_bytes == 128 * 4 * (128256 - 4096)
