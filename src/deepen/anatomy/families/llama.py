"""The Llama family: pre-norm blocks with a gated FFN and grouped-query attention.

Axis labels name what an axis counts: ``residual`` (the stream shared by all blocks), ``query``
(query heads × head_dim), ``key_value`` (KV heads × head_dim), ``head`` (one head's dimensions),
``attended`` (what the heads hand on) and ``ffn`` (FFN neurons). Two axes with one label have one
size everywhere in the model.
"""

from deepen.anatomy.family import Family
from deepen.anatomy.tensors import Table, buffers, linear, norm


def attention(name: str = "self_attn", *, output: str = "o_proj", writes: bool = True) -> Table:
    """Describe attention with a linear layer each for query, key, value and output."""
    return {
        **linear(f"{name}.q_proj", "query", "query", "residual"),
        **linear(f"{name}.k_proj", "key", "key_value", "residual"),
        **linear(f"{name}.v_proj", "value", "value", "residual"),
        **linear(f"{name}.{output}", "attention_output", "residual", "attended", writes=writes),
    }


def gated(name: str = "mlp", *, axis: str = "ffn", unit: str = "", writes: bool = True) -> Table:
    """Describe a gated FFN: gate, up and down projection."""
    return {
        **linear(f"{name}.gate_proj", "gate", axis, "residual", unit=unit),
        **linear(f"{name}.up_proj", "up", axis, "residual", unit=unit),
        **linear(f"{name}.down_proj", "ffn_output", "residual", axis, unit=unit, writes=writes),
    }


def query_key_norms(name: str = "self_attn", axis: str = "head") -> Table:
    """Describe the norms of queries and keys that several families have."""
    return {
        **norm(f"{name}.q_norm", "query_norm", axis),
        **norm(f"{name}.k_norm", "key_norm", axis),
    }


ATTENTION_NORM = norm("input_layernorm", "attention_norm")
FFN_NORM = norm("post_attention_layernorm", "ffn_norm")
# Checkpoints from before transformers 4.32 store the RoPE frequencies; loaders ignore them.
ROPE_BUFFER = buffers("self_attn.rotary_emb.inv_freq")

_BLOCK = {**ATTENTION_NORM, **attention(), **FFN_NORM, **gated(), **ROPE_BUFFER}

FAMILIES = (
    Family("llama", {"block": _BLOCK}),
    Family("mistral", {"block": _BLOCK}),
    Family(
        "qwen2",
        {"block": _BLOCK},
        per_layer_lists=("layer_types",),
        prefix_counts=("max_window_layers",),
    ),
    Family(
        "qwen3",
        {"block": {**ATTENTION_NORM, **attention(), **query_key_norms(), **FFN_NORM, **gated()}},
        per_layer_lists=("layer_types",),
        prefix_counts=("max_window_layers",),
    ),
)

REFUSED: dict[str, str] = {}
