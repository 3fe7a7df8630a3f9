"""The Llama family: pre-norm blocks with a gated FFN and grouped-query attention.

Axis labels name what an axis counts: ``residual`` (the stream shared by all blocks), ``query``
(query heads × head_dim), ``key_value`` (KV heads × head_dim), ``head`` (one head's dimensions) and
``ffn`` (FFN neurons). Two axes with one label have one size everywhere in the model.
"""

from deepen.anatomy.family import Family, TensorSpec


def _linear(name: str, role: str, out_axis: str, in_axis: str) -> dict[str, TensorSpec]:
    """Describe a linear layer: its weight ``[out, in]``, and its bias where there is one."""
    writes = out_axis == "residual"
    return {
        f"{name}.weight": TensorSpec(role, (out_axis, in_axis), writes_residual=writes),
        f"{name}.bias": TensorSpec(role, (out_axis,), writes_residual=writes, optional=True),
    }


_BLOCK = {
    "input_layernorm.weight": TensorSpec("attention_norm", ("residual",)),
    **_linear("self_attn.q_proj", "query", "query", "residual"),
    **_linear("self_attn.k_proj", "key", "key_value", "residual"),
    **_linear("self_attn.v_proj", "value", "key_value", "residual"),
    **_linear("self_attn.o_proj", "attention_output", "residual", "query"),
    "post_attention_layernorm.weight": TensorSpec("ffn_norm", ("residual",)),
    **_linear("mlp.gate_proj", "gate", "ffn", "residual"),
    **_linear("mlp.up_proj", "up", "ffn", "residual"),
    **_linear("mlp.down_proj", "ffn_output", "residual", "ffn"),
}

# Checkpoints from before transformers 4.32 store the RoPE frequencies; loaders ignore them.
_ROPE_BUFFER = {
    "self_attn.rotary_emb.inv_freq": TensorSpec("buffer", ("frequency",), optional=True)
}

_QUERY_KEY_NORMS = {
    "self_attn.q_norm.weight": TensorSpec("query_norm", ("head",)),
    "self_attn.k_norm.weight": TensorSpec("key_norm", ("head",)),
}

LLAMA = Family("llama", _BLOCK | _ROPE_BUFFER)
MISTRAL = Family("mistral", _BLOCK | _ROPE_BUFFER)
QWEN2 = Family(
    "qwen2", _BLOCK, per_layer_lists=("layer_types",), prefix_counts=("max_window_layers",)
)
QWEN3 = Family(
    "qwen3",
    _BLOCK | _QUERY_KEY_NORMS,
    per_layer_lists=("layer_types",),
    prefix_counts=("max_window_layers",),
)
