"""What real checkpoints of hybrids have that tiny ones, as transformers saves them, have not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deepen
import shrink
from cases import CASES
from deepen.base.model import open_model
from deepen.common.errors import DeepenError

IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def save(folder: Path, name: str, **more: Any) -> Path:
    model_type, settings = CASES[name]
    shrink.model(model_type, **(settings | more)).save_pretrained(folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def edit(folder: Path, config: Mapping[str, Any], without: tuple[str, ...] = ()) -> None:
    merged = {k: v for k, v in (config_of(folder) | config).items() if k not in without}
    (folder / "config.json").write_text(json.dumps(merged))


def logits(folder: Path) -> torch.Tensor:
    """Run a model whose tensors have memory of their own: rounding depends on alignment."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def grown(base: Path, **how: Any) -> Path:
    """Grow a base, and hold the result to it."""
    out = base.parent / "grown"
    deepen.grow(base, out, overwrite=True, **how)
    result = deepen.verify(base, out, sequences=1, length=16)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert torch.equal(logits(out), logits(base))
    return out


@pytest.mark.parametrize(
    ("method", "gap"), [("opt-deus", 2), ("llama-pro", 2), ("llama-pro", 5), ("llama-pro", 3)]
)
def test_jamba_grows_by_whole_periods(method, gap, tmp_path):
    rules = {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 3,
        "expert_layer_offset": 2,
    }
    base = save(tmp_path / "base", "jamba", **rules)
    out = grown(base, method=method, placement=f"after:{gap},{gap},{gap}")
    kinds = [block.kind for block in open_model(out).anatomy.blocks]
    assert kinds == ["mamba, dense", "attention, dense", "mamba, experts"] * 3
    with pytest.raises(DeepenError, match=r"--placement after:2,2,2\.$"):
        deepen.grow(base, tmp_path / "no")


@shrink.later
def test_nemotron_keeps_its_pattern_and_what_stands_beside_the_stack(tmp_path):
    base = save(tmp_path / "base", "nemotron_h")
    edit(
        base, {"hybrid_override_pattern": "EM-*EM", "num_hidden_layers": 6}, ("layers_block_type",)
    )
    tensors = load_file(base / "model.safetensors")
    tensors["mtp.layers.0.norm.weight"] = torch.arange(32.0)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    out = grown(base, method="llama-pro", placement="after:1,2,5")
    assert config_of(out)["hybrid_override_pattern"] == "EMM--*EMM"
    assert config_of(out)["num_hidden_layers"] == 9
    kept = load_file(out / "model.safetensors")
    assert torch.equal(kept["mtp.layers.0.norm.weight"], torch.arange(32.0))
    assert all(name.startswith(("backbone.", "mtp.", "lm_head.")) for name in kept)


def test_kimi_s_lists_of_blocks_count_from_one(tmp_path):
    base = save(tmp_path / "base", "kimi_linear")
    lists = {"full_attn_layers": [2, 5], "kda_layers": [1, 3, 4, 6]}
    sizes = {"head_dim": 8, "num_heads": 4, "short_conv_kernel_size": 4}
    edit(base, {"linear_attn_config": {**lists, **sizes}}, ("layer_types",))
    out = grown(base, method="llama-pro", placement="after:1,2")
    assert config_of(out)["linear_attn_config"] == {
        "full_attn_layers": [2, 3, 7],
        "kda_layers": [1, 4, 5, 6, 8],
        **sizes,
    }


@shrink.later
def test_olmo_s_convolutions_may_be_of_unequal_sizes(tmp_path):
    base = save(tmp_path / "base", "olmo_hybrid")
    tensors = load_file(base / "model.safetensors")
    wide = {}
    for name in [name for name in tensors if "q_conv1d" in name]:
        names = [name.replace("q_conv1d", f"{what}_conv1d") for what in "qkv"]
        whole = torch.cat([tensors[part] for part in names])
        assert [len(tensors[part]) for part in names] == [32, 32, 32]  # transformers' thirds
        wide |= dict(zip(names, whole.split([24, 24, 48]), strict=True))
    before = logits(base)
    save_file({**tensors, **{k: v.clone() for k, v in wide.items()}}, base / "model.safetensors")
    edit(base, {})
    assert torch.equal(logits(base), before)
    grown(base)


def test_other_names_of_the_depth_are_true_too(tmp_path):
    base = save(tmp_path / "base", "mamba")
    edit(base, {"n_layer": 6})
    out = grown(base, new_layers=2)
    assert config_of(out)["n_layer"] == config_of(out)["num_hidden_layers"] == 8


def test_rwkv_that_rescales_by_index_is_refused(tmp_path):
    base = save(tmp_path / "base", "rwkv", rescale_every=2)
    with pytest.raises(DeepenError, match=r"it halves its hidden states after every n-th block"):
        deepen.grow(base, tmp_path / "no")


@pytest.mark.parametrize("model_type", ["zamba2", "deepseek_v4", "qwen3_5", "inkling2_text"])
def test_what_cannot_be_right_is_refused(model_type, tmp_path):
    base = save(tmp_path / "base", "mamba")
    edit(base, {"model_type": model_type})
    with pytest.raises(DeepenError, match=rf"of family '{model_type}', which deepen does not grow"):
        deepen.grow(base, tmp_path / "no")
