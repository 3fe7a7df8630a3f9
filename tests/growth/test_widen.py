"""A wider checkpoint computes what its base does, and only its new neurons are new."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth.widen import widen
from deepen.planning.partial import neuron_parameters
from deepen.verification.verify import verify

# Every way to store an FFN and to say its width: two matrices and three, [in, out], fused rows,
# a head's prefix that is missing, biases, parallel blocks, norms behind, other layouts in memory.
FAMILIES = [
    *("llama-biased", "gpt2", "gemma3_text", "phi3", "gpt_bigcode", "gptj", "gpt_neox", "falcon"),
    *("opt", "opt-projected", "xglm", "ctrl", "starcoder2", "olmo2", "glm4", "olmo_hybrid", "rwkv"),
    *("granitemoehybrid-dense", "modernbert-decoder", "bamba"),
]


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny base."""
    if family in tiny.FAMILIES:
        return tiny.save(folder, family, dtype=dtype)
    model_type, settings = CASES[family]
    shrink.model(model_type, **settings).to(dtype).save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    tokens = torch.arange(48).reshape(2, 24) % 300
    with torch.no_grad():
        return tiny.load(folder)(tokens, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_kept(family: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", family)
    record = widen(base, tmp_path / "wider", 7)
    before, after = logits(base), logits(tmp_path / "wider")
    # Zeros are added, but a longer sum may be taken in another order.
    assert (after - before).abs().max() <= 1e-6 * before.abs().max()
    assert record.new_parameters == neuron_parameters(open_model(tmp_path / "wider"), 7)
    assert record.parameters == open_model(tmp_path / "wider").source.parameters


@pytest.mark.parametrize("family", ["llama-biased", "gpt2", "phi3"])
def test_new_neurons_are_behind_the_old_ones(family: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", family, torch.bfloat16)
    widen(base, tmp_path / "wider", 3)
    old, new = open_model(base), open_model(tmp_path / "wider")
    device = torch.device("cpu")
    for index in range(old.depth):
        before, after = old.block(index, device), new.block(index, device)
        for name, spec in old.anatomy.block.items():
            a, b = before[name], after[name]
            if a.shape == b.shape:
                assert torch.equal(as_bytes(a), as_bytes(b)), name
            elif spec.role == "ffn_output":
                assert torch.equal(b[:, :-3], a)
                assert not b[:, -3:].any()
            else:
                assert spec.role in ("gate", "up")
                assert torch.equal(b[:-3], a)
                size = b[-3:].float().square().mean() / a.float().square().mean()
                assert 0.4 < size < 2 if a.dim() == 2 else b[-3:].unique().numel() == 1
    outside = [FolderSource(folder) for folder in (base, tmp_path / "wider")]
    for name in old.anatomy.outside:
        assert torch.equal(*(as_bytes(source.load(name)) for source in outside))


def test_rows_are_as_large_as_the_blocks_own_column_by_column(tmp_path: Path) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.gate_proj.weight[:, 5] *= 100
    model.save_pretrained(tmp_path / "base")
    widen(tmp_path / "base", tmp_path / "wider", 400)
    gate = tiny.load(tmp_path / "wider").model.layers[2].mlp.gate_proj.weight.detach()
    own, drawn = (part.square().mean(0).sqrt() for part in (gate[:40], gate[40:]))
    assert torch.allclose(own, drawn, rtol=0.2)


def test_everything_beside_the_weights_comes_along(llama: Path, tmp_path: Path) -> None:
    record = widen(llama, tmp_path / "wider", 8, max_shard_size="20KB")
    assert (record.width, record.config_fields) == (48, ["intermediate_size"])
    before, after = tiny.read(llama), tiny.read(tmp_path / "wider")
    assert len([name for name in after if name.endswith(".safetensors")]) > 1
    for name in ("LICENSE", "tokenizer.json", "tokenizer_config.json"):
        assert after[name] == before[name]
    configs = [json.loads(files["config.json"]) for files in (before, after)]
    assert configs[0] | {"intermediate_size": 48} == configs[1]
    assert b"license: mit" in after["README.md"]
    assert b"was given 8 neurons" in after["README.md"]


def test_a_wider_model_grows(llama: Path, tmp_path: Path) -> None:
    from deepen.growth.grow import grow

    widen(llama, tmp_path / "wider", 8)
    grow(tmp_path / "wider", tmp_path / "grown", method="llama-pro", new_layers=1)
    assert verify(tmp_path / "wider", tmp_path / "grown").passed


def test_the_same_seed_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(out))
        widen(llama, tmp_path / out, 8, seed=seed)
    a, b, c = (tiny.read(tmp_path / out)["model.safetensors"] for out in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("mixtral", "Block 0 of base has experts"),
        ("bitnet", "do not stand by themselves .*ffn_sub_norm"),
        ("bloom", "no field of config.json sets the 128 neurons"),
        ("mamba", "no FFN"),
    ],
)
def test_what_cannot_be_widened(family: str, said: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", family)
    with pytest.raises(DeepenError, match=said):
        widen(base, tmp_path / "new" / "wider", 7)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_places_and_numbers_that_are_refused(llama: Path, tmp_path: Path) -> None:
    def refused(**how: Any) -> str:
        with pytest.raises(DeepenError) as error:
            widen(llama, **({"out": tmp_path / "wider", "neurons": 3} | how))
        assert not (tmp_path / "wider").exists()
        return str(error.value)

    assert "name at least 1" in refused(neurons=0)
    assert "lies in MODEL's own folder" in refused(out=llama / "inside")
    assert "is not a size" in refused(max_shard_size="much")
