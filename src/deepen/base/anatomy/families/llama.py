"""The Llama family: pre-norm blocks with a gated FFN and grouped-query attention, and its kin."""

import math
from typing import Any

from deepen.base.anatomy.family import Config, Family, Heads
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    FFN_NORM,
    LAYER_TYPES,
    PLAIN,
    QUERY_KEY_VALUE,
    ROPE_BUFFER,
    adjacent_heads,
    attention,
    buffers,
    clipped,
    fused,
    fused_gated,
    gated,
    heads_with,
    latent_attention,
    linear,
    no_heads,
    norm,
    normed_heads,
    other,
    plain,
    query_key_norms,
    rope_heads,
    sinks,
)
from deepen.base.anatomy.tensors import Table

_BLOCK = {**PLAIN, **gated(), **ROPE_BUFFER}
_NORMED = {**ATTENTION_NORM, **attention(), **query_key_norms(), **FFN_NORM, **gated()}
_LATENT = {
    kind: {**ATTENTION_NORM, **latent_attention(query=query), **FFN_NORM, **gated()}
    for kind, query in (("latent queries", True), ("whole queries", False))
}

_GRANITE_SWA: Table = {**_BLOCK, **sinks()}
_GLM: Table = {**PLAIN, **fused_gated()}
_UNGATED: Table = {**PLAIN, **plain()}
_HUNYUAN: Table = {
    **_BLOCK,
    **query_key_norms(query="query_layernorm", key="key_layernorm"),
}
# All its norms lack a gain.
_NANOCHAT: Table = {**attention(), **plain("mlp.fc1", "mlp.fc2")}

# Attention and FFN read the same normed stream. Norms of queries and keys have a gain per head.
_COHERE: Table = {
    **ATTENTION_NORM,
    **attention(),
    **other("self_attn.q_norm.weight", "query_norm", ("heads", "head"), optional=True),
    **other("self_attn.k_norm.weight", "key_norm", ("kv_heads", "head"), optional=True),
    **gated(),
    **ROPE_BUFFER,
}

_PHI3: Table = {
    **ATTENTION_NORM,
    **fused("self_attn.qkv_proj", QUERY_KEY_VALUE),
    **linear("self_attn.o_proj", "attention_output", "residual", "attended"),
    **FFN_NORM,
    **fused_gated(),
}

# Its activation, xIELU, learns two slopes; beta and eps are constants.
_APERTUS: Table = {
    **norm("attention_layernorm", "attention_norm"),
    **attention(),
    **query_key_norms(),
    **norm("feedforward_layernorm", "ffn_norm"),
    **linear("mlp.up_proj", "up", "ffn", "residual"),
    **other("mlp.act_fn.alpha_p", "positive_slope", ("one",), optional=True),
    **other("mlp.act_fn.alpha_n", "negative_slope", ("one",), optional=True),
    **linear("mlp.down_proj", "ffn_output", "residual", "ffn"),
    **buffers("mlp.act_fn.beta", "mlp.act_fn.eps"),
}

# Both output projections read a normed input, with a gain for every dimension of every head.
_BITNET: Table = {
    **ATTENTION_NORM,
    **attention(),
    **norm("self_attn.attn_sub_norm", "attended_norm", "attended"),
    **FFN_NORM,
    **gated(),
    **norm("mlp.ffn_sub_norm", "ffn_inner_norm", "ffn"),
}

# The stream itself is scaled, so that a silent block must scale it by one. Values also decide
# which tokens are attended to.
_DOGE: Table = {
    **ATTENTION_NORM,
    **attention(),
    **query_key_norms(),
    **linear("self_attn.dt_proj", "value_step", "kv_heads", "value"),
    **other("self_attn.A", "value_decay", ("kv_heads",)),
    **other("input_residual", "attention_residual_scale", ("residual",), silent=1.0),
    **FFN_NORM,
    **gated(),
    **other("post_attention_residual", "ffn_residual_scale", ("residual",), silent=1.0),
}

# Beside the FFN, experts of one neuron each are looked up by the product of two keys.
_DOGE_EXPERTS: Table = {
    **_DOGE,
    **linear("mlp.router_gate", "retrieval_router", "retrieval_key", "residual"),
    **other("mlp.down_embed.weight", "retrieved_input", ("retrieved", "residual")),
    **other("mlp.up_embed.weight", "retrieved_output", ("retrieved", "residual"), silent=0.0),
}


def _depth_scale(config: Config, depth: int) -> dict[str, Any]:
    """Keep MiniCPM3's factor on what a block adds, ``scale_depth / sqrt(num_hidden_layers)``."""
    factor = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    scale = factor * math.sqrt(depth)
    near = (scale, math.nextafter(scale, 0), math.nextafter(scale, math.inf))
    return {"scale_depth": min(near, key=lambda value: abs(value / math.sqrt(depth) - factor))}


def _cohere_heads(config: Config) -> Heads | None:
    """Read Cohere's heads; in its larger models each is normed with gains of its own."""
    own = bool(config["use_qk_norm"])
    return heads_with(planes="adjacent", normed=own, fixed=own)(config)


def _alike(block: Table, *model_types: str, **rules: Any) -> tuple[Family, ...]:
    """Return families whose blocks have the same tensors and whose configs the same rules.

    Unless their rules say otherwise their heads are free but for RoPE, and their FFNs, where they
    have a gate, linear in the up projection.
    """
    rules = {"heads": rope_heads, "bilinear": True, **rules}
    return tuple(Family(model_type, {"block": block}, **rules) for model_type in model_types)


_QWEN: dict[str, Any] = {
    "per_layer_lists": LAYER_TYPES,
    "prefix_counts": ("max_window_layers",),
}

FAMILIES = (
    *_alike(_BLOCK, "llama", "mistral", "granite", "gemma", "seed_oss"),
    *_alike(_BLOCK, "internlm3", "iquestcoder"),
    *_alike(_BLOCK, "ministral", "ministral3", "cwm", per_layer_lists=LAYER_TYPES),
    *_alike(_BLOCK, "helium", "ernie4_5", heads=adjacent_heads),
    *_alike(_BLOCK, "qwen2", **_QWEN),
    *_alike(_NORMED, "qwen3", heads=normed_heads, **_QWEN),
    # A 1 in no_rope_layers says that the block has RoPE.
    *_alike(_BLOCK, "smollm3", per_layer_lists=("layer_types", "no_rope_layers")),
    *_alike(_GRANITE_SWA, "granite_swa", per_layer_lists=("layer_types", "layer_rope_theta")),
    *_alike(_COHERE, "cohere", heads=_cohere_heads),
    *_alike(_COHERE, "cohere2", heads=adjacent_heads, per_layer_lists=LAYER_TYPES),
    *_alike(_COHERE, "cohere_compass_text", per_layer_lists=LAYER_TYPES),
    *_alike(_PHI3, "phi3"),
    *_alike(_GLM, "glm", heads=adjacent_heads),
    *_alike(_UNGATED, "arcee"),
    *_alike(_UNGATED, "jais2", final_norm=("model.norm.weight", "model.norm.bias")),
    *_alike({**attention(), **gated()}, "olmo", final_norm=(), heads=clipped(rope_heads)),
    *_alike(_NANOCHAT, "nanochat", final_norm=(), heads=normed_heads),
    *_alike(_HUNYUAN, "hunyuan_v1_dense", heads=normed_heads),
    *_alike(_APERTUS, "apertus", heads=normed_heads),
    *_alike(_BITNET, "bitnet", heads=heads_with(fixed=True, gated=True)),
    Family("doge", {"dense": _DOGE, "experts": _DOGE_EXPERTS}, heads=no_heads, bilinear=True),
    Family("youtu", _LATENT, heads=no_heads, bilinear=True),
    Family("minicpm3", _LATENT, heads=no_heads, bilinear=True, for_depth=_depth_scale),
)

MULTIMODAL = (
    *_alike(_BLOCK, "qwen2_vl_text", "qwen2_5_vl_text", **_QWEN),
    *_alike(_NORMED, "qwen3_vl_text", heads=normed_heads),
)
"""Text models that stand only inside larger ones. RoPE counts time, height and width apart, each in
planes of its own, which stay in their places."""
