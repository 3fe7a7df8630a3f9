"""Activation checkpointing saves memory and never brings the frozen trunk back.

FLOPs are counted by torch, saved activations by a hook, in a whole step of either engine.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from deepen.base.model import open_model
from deepen.common.progress import silent
from deepen.training.data.examples import load_examples
from deepen.training.data.packed import load_packed
from deepen.training.engine.make import make_engine
from deepen.training.engine.schedule import Schedule
from deepen.training.freeze import trainable
from deepen.training.load import load_module
from deepen.training.recipe import Recipe, Stage

DEPTH, TRAINED = 12, (7, 9, 11)
LENGTH = 64


@dataclass
class Cost:
    """What one step of training took."""

    flops: int
    saved_bytes: int
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve blocks."""
    folder = tmp_path_factory.mktemp("deep") / "deep"
    return tiny.save(folder, num_hidden_layers=DEPTH, dtype=torch.float32)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of one length, so that no batch is padded."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    text = "abcdefgh" * LENGTH
    file.write_text("\n".join(json.dumps({"text": text[i:]}) for i in range(8)))
    return file


def step(
    deep: Path, data: Path, out: Path, stage: Stage, prepare: Callable[[Any], None], on: bool
) -> Cost:
    """Take one step, from the recipe to the update."""
    recipe = Recipe.model_validate(
        {
            "model": str(deep),
            "data": {"path": str(data), "sequence_length": LENGTH, "loss": "all"},
            "training": {
                "max_steps": 1,
                "batch_size": 4,
                "warmup": 0,
                "trains": list(TRAINED),
                "activation_checkpointing": on,
                "report_to": "none",
            },
            "output": str(out),
        }
    ).resolved(stage)
    model = open_model(deep)
    tokenizer = model.tokenizer()
    module = load_module(
        model, trainable(model.source.config, model.depth, recipe.training, "m"), recipe.training
    )
    prepare(module)
    if stage == "cpt":
        rows: Any = load_packed(recipe.data, recipe.training, tokenizer, out / "data", silent)
    else:
        rows = load_examples(recipe.data, tokenizer, out / "data", silent)
    schedule = Schedule(recipe.training, 1, LENGTH, len(rows), 0)
    engine = make_engine(recipe, stage, module, rows, tokenizer, schedule, None, silent)
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks, torch.random.fork_rng():
        engine.train()
    return Cost(counter.get_total_flops(), sum(saved.values()), module.state_dict())


def nothing(module: Any) -> None:
    """Change nothing."""


def as_shipped(module: Any) -> None:
    """Switch checkpointing on as transformers does."""
    earlier = getattr(module, "gradient_checkpointing_enable", None)
    getattr(module, "activation_checkpointing_enable", earlier)({"use_reentrant": False})


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_checkpointing_leaves_the_trunk_out(
    deep: Path, flat: Path, tmp_path: Path, stage: Stage
) -> None:
    plain = step(deep, flat, tmp_path / "plain", stage, nothing, on=False)
    ours = step(deep, flat, tmp_path / "ours", stage, nothing, on=True)
    shipped = step(deep, flat, tmp_path / "shipped", stage, as_shipped, on=False)

    # A block's forward pass is its matrices: torch counts nothing for attention on CPUs.
    hidden, kv, ffn, tokens = 24, 12, 40, 4 * LENGTH
    block = tokens * 2 * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn)
    through = DEPTH - TRAINED[0]
    head = 2 * tokens * 2 * hidden * tiny.VOCABULARY  # forward, and the gradient through it
    expected = (DEPTH + through + len(TRAINED)) * block + head
    assert plain.flops == pytest.approx(expected, rel=0.005)

    # Recomputed are the blocks from the lowest trained one up, and no more.
    assert 0.6 * through * block < ours.flops - plain.flops <= through * block
    assert ours.saved_bytes < 0.6 * plain.saved_bytes
    # As shipped, gradients run through the trunk too: if this fails, the trap is gone upstream.
    assert shipped.flops - ours.flops > 0.9 * TRAINED[0] * block
    for name, weight in plain.weights.items():
        assert torch.equal(weight, ours.weights[name]), name
        assert torch.equal(weight, shipped.weights[name]), name
