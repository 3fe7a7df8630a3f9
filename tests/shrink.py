"""A tiny model of any causal language model family that transformers can build."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, __version__

EARLIER = Version(__version__) < Version("5.23")
"""Whether transformers is of before the version that all cases were written with."""
later = pytest.mark.skipif(EARLIER, reason=f"transformers {__version__} reads this otherwise")
BLOCKS = 6
VOCABULARY = 320

# Whatever a config class calls its sizes; those that it does not have are left out.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), BLOCKS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), None),
    "vocab_size": VOCABULARY,
    "head_dim": 8,
    "eos_token_id": 0,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
}


def config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """Return a tiny config of a family, four heads wide and six blocks deep."""
    if EARLIER and model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {__version__} does not know {model_type}")
    cls = CONFIG_MAPPING[model_type]
    default, parameters = cls(), inspect.signature(cls.__init__).parameters
    sizes = {k: v for k, v in _SIZES.items() if _has(default, k) or k in parameters}
    return cls(**(sizes | settings))


def _has(default: PreTrainedConfig, field: str) -> bool:
    """Whether a config has a field; those that differ between blocks cannot be read."""
    if isinstance(getattr(type(default), field, None), property):
        return False
    try:
        return hasattr(default, field)
    except RuntimeError:
        return True


def model(model_type: str, seed: int = 0, **settings: Any) -> Any:
    """Build a tiny model, every parameter of it random, norms and biases too."""
    return random_model(AutoModelForCausalLM, config(model_type, **settings), seed)


def random_model(auto: Any, settings: Any, seed: int) -> Any:
    """Build a model of a config by one of transformers' Auto classes, every parameter random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = auto.from_config(settings, dtype=torch.float32)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return built.eval()


def load(folder: Path, auto: Any = AutoModelForCausalLM) -> Any:
    """Load a checkpoint as any user would, with no tensor missing or left over."""
    built, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    assert not report["mismatched_keys"], report
    for parameter in built.parameters():  # rounding depends on how a tensor lies in memory
        parameter.data = parameter.data.clone()
    return built.eval()
