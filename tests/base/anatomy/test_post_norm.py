"""Why blocks with a norm on the way out are silenced by its gain, and what else they hide."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deepen
import shrink
from cases import CASES
from deepen.base import streamed as forward
from deepen.base.model import open_model
from deepen.common.errors import DeepenError

IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
NORMS = ("attention_output_norm", "ffn_output_norm")
PROJECTIONS = ("attention_output", "ffn_output")


def save(folder: Path, name: str) -> Path:
    model_type, settings = CASES[name]
    shrink.model(model_type, **settings).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    """Load a model into memory of its own: rounding depends on how a tensor is aligned."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def new_blocks(folder: Path) -> list[int]:
    return list(open_model(folder).source.config["deepen"]["new_blocks"])


def zero_the_projections_instead(grown: Path) -> None:
    """Give new blocks the norms of the block that they copy, and zero what the norms scale."""
    base, file = open_model(grown), grown / "model.safetensors"
    tensors, new = load_file(file), new_blocks(grown)
    for index in new:
        copied = max(i for i in range(index) if i not in new)
        anatomy = base.anatomy.blocks[index]
        for name, spec in anatomy.block.items():
            full = base.family.name(index, name)
            if spec.role in NORMS:
                tensors[full] = tensors[base.family.name(copied, name)].clone()
            elif spec.role in PROJECTIONS:
                tensors[full] = torch.zeros_like(tensors[full])
    save_file(tensors, file, {"format": "pt"})


def moved_by_one_step(folder: Path, base: Path) -> float:
    """Return how far the logits are from the base's after one AdamW step of the new blocks."""
    model, before = load(folder), logits(load(base))
    assert torch.equal(logits(model), before)
    family, new = open_model(folder).family, new_blocks(folder)
    places = {name: family.split(name) for name, _ in model.named_parameters()}
    trained = [p for name, p in model.named_parameters() if (at := places[name]) and at[0] in new]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    model.train()(IDS, labels=IDS).loss.backward()
    optimizer.step()
    return float((logits(model.eval()) - before).abs().max())


@pytest.mark.parametrize(
    "name",
    ["gemma2", "gemma3_text", "gemma4_text", "olmo2", "olmo3", "glm4", "exaone4", "hyperclovax"],
)
def test_zeroed_projections_would_throw_the_logits(name, tmp_path):
    base = save(tmp_path / "base", name)
    deepen.grow(base, tmp_path / "grown", method="llama-pro")
    ours = moved_by_one_step(tmp_path / "grown", base)
    zero_the_projections_instead(tmp_path / "grown")
    theirs = moved_by_one_step(tmp_path / "grown", base)
    assert theirs > 1000 * ours > 0


def test_a_new_block_of_gemma4_leaves_the_scale_of_the_stream_alone(tmp_path):
    model_type, settings = CASES["gemma4_text"]
    model = shrink.model(model_type, **settings)
    flat = logits(model)
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        layer.layer_scalar.uniform_(0.5, 1.5, generator=generator)
    model.save_pretrained(tmp_path / "base")
    expected = logits(load(tmp_path / "base"))
    assert not torch.allclose(expected, flat, atol=1e-3)
    streamed = forward.logits(open_model(tmp_path / "base"), IDS, torch.device("cpu"))
    assert torch.equal(streamed, expected)

    deepen.grow(tmp_path / "base", tmp_path / "grown")
    grown, new = load(tmp_path / "grown"), new_blocks(tmp_path / "grown")
    assert torch.equal(logits(grown), expected)
    assert {float(grown.model.layers[i].layer_scalar) for i in new} == {1.0}
    assert torch.equal(logits(deepen.grow_model(load(tmp_path / "base"))), expected)
    assert deepen.verify(tmp_path / "base", tmp_path / "grown", sequences=1, length=8).passed


def test_head_sizes_given_by_type_are_kept_by_block(tmp_path):
    base = save(tmp_path / "base", "gemma4_unified_text")
    config = json.loads((base / "config.json").read_text())
    by_block = config.pop("per_layer_config")
    assert by_block == {i: {"head_dim": 16} for i in ("1", "4", "5")}
    expected = logits(load(base))
    (base / "config.json").write_text(json.dumps(config | {"global_head_dim": 16}))
    assert torch.equal(logits(load(base)), expected)
    deepen.grow(base, tmp_path / "grown", placement="after:1,3,5", method="llama-pro")
    assert torch.equal(logits(load(tmp_path / "grown")), expected)
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    wide = [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    assert wide == [1, 2, 6, 7, 8]
    assert config["per_layer_config"] == {str(i): {"head_dim": 16} for i in wide}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_size_per_layer_input": 4}, "per-layer input embeddings hold a slice"),
        ({"num_kv_shared_layers": 2}, "keys and values of the last blocks below"),
    ],
)
def test_what_gemma4_cannot_be_grown_with(settings, reason, tmp_path):
    model_type, plain = CASES["gemma4_text"]
    settings = {**plain, "vocab_size_per_layer_input": 320, **settings}
    shrink.model(model_type, **settings).save_pretrained(tmp_path / "base")
    with pytest.raises(DeepenError, match=f"cannot be grown: its .*{reason}"):
        open_model(tmp_path / "base")


@pytest.mark.parametrize("name", ["gemma3_text", "olmo3", "glm4", "exaone4", "hyperclovax-plain"])
def test_axis_labels_have_the_sizes_that_the_config_tells(name, tmp_path):
    base = open_model(save(tmp_path / "base", name))
    block, anatomy = base.block(0, torch.device("cpu")), base.anatomy.blocks[0]
    assert anatomy.heads is not None
    sizes = anatomy.heads.sizes | {"residual": 32, "ffn": 48}
    for logical, spec in anatomy.block.items():
        assert tuple(block[logical].shape) == tuple(sizes[axis] for axis in spec.axes), logical
