"""The Llama family: pre-norm blocks with a gated FFN and grouped-query attention, and its kin.

Axis labels name what an axis counts: ``residual`` (the stream shared by all blocks), ``query``
(query heads × head_dim), ``key_value`` (KV heads × head_dim), ``head`` (one head's dimensions),
``attended`` (what the heads hand on) and ``ffn`` (FFN neurons). Two axes with one label have one
size everywhere in the model.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deepen.base.anatomy.family import Config, Family, Heads, rope_heads
from deepen.base.anatomy.tensors import Table, buffers, fused, linear, norm, other


def attention(name: str = "self_attn", *, output: str = "o_proj", writes: bool = True) -> Table:
    """Describe attention with a linear layer each for query, key, value and output."""
    return {
        **linear(f"{name}.q_proj", "query", "query", "residual"),
        **linear(f"{name}.k_proj", "key", "key_value", "residual"),
        **linear(f"{name}.v_proj", "value", "value", "residual"),
        **linear(f"{name}.{output}", "attention_output", "residual", "attended", writes=writes),
    }


def latent_attention(name: str = "self_attn", *, query: bool, writes: bool = True) -> Table:
    """Describe multi-head latent attention. arXiv 2405.04434, section 2.1.

    Keys and values are made from a small latent vector per token, and beside it stands one key of
    RoPE dimensions for all heads.

    Args:
        name: Name of the attention inside the block.
        query: Whether queries are made from a latent vector too.
        writes: As in ``linear``, for the output projection.
    """
    latent = {
        **linear(f"{name}.q_a_proj", "latent_query_down", "latent_query", "residual"),
        **norm(f"{name}.q_a_layernorm", "latent_query_norm", "latent_query"),
        **linear(f"{name}.q_b_proj", "latent_query_up", "query", "latent_query"),
    }
    key_value = "latent_key_value"
    return {
        **(latent if query else linear(f"{name}.q_proj", "query", "query", "residual")),
        **linear(
            f"{name}.kv_a_proj_with_mqa", f"{key_value}_down", "latent_and_rotary", "residual"
        ),
        **norm(f"{name}.kv_a_layernorm", f"{key_value}_norm", "latent_key_value"),
        **linear(f"{name}.kv_b_proj", f"{key_value}_up", "key_value", "latent_key_value"),
        **linear(f"{name}.o_proj", "attention_output", "residual", "attended", writes=writes),
    }


def gated(name: str = "mlp", *, axis: str = "ffn", unit: str = "", writes: bool = True) -> Table:
    """Describe a gated FFN: gate, up and down projection."""
    return {
        **linear(f"{name}.gate_proj", "gate", axis, "residual", unit=unit),
        **linear(f"{name}.up_proj", "up", axis, "residual", unit=unit),
        **linear(f"{name}.down_proj", "ffn_output", "residual", axis, unit=unit, writes=writes),
    }


def fused_gated(name: str = "mlp", *, writes: bool = True) -> Table:
    """Describe a gated FFN with one linear layer for gate and up."""
    return {
        **fused(f"{name}.gate_up_proj", {"gate": "ffn", "up": "ffn"}),
        **linear(f"{name}.down_proj", "ffn_output", "residual", "ffn", writes=writes),
    }


def plain(up: str = "mlp.up_proj", down: str = "mlp.down_proj") -> Table:
    """Describe an FFN of two matrices, without a gate."""
    return {
        **linear(up, "up", "ffn", "residual"),
        **linear(down, "ffn_output", "residual", "ffn"),
    }


def query_key_norms(
    name: str = "self_attn", axis: str = "head", *, query: str = "q_norm", key: str = "k_norm"
) -> Table:
    """Describe the norms of queries and keys that several families have."""
    return {
        **norm(f"{name}.{query}", "query_norm", axis),
        **norm(f"{name}.{key}", "key_norm", axis),
    }


def heads_with(**differences: Any) -> Callable[[Config], Heads | None]:
    """Return a reader of heads that differ from Llama's in some fields of ``Heads``."""

    def read(config: Config) -> Heads | None:
        heads = rope_heads(config)
        return heads and replace(heads, **differences)

    return read


def no_heads(config: Config) -> None:
    """Read no heads, where more than query, key, value and output hangs on them."""


normed_heads = heads_with(normed=True)
adjacent_heads = heads_with(pairing="adjacent")

ATTENTION_NORM = norm("input_layernorm", "attention_norm")
FFN_NORM = norm("post_attention_layernorm", "ffn_norm")
# Checkpoints from before transformers 4.32 store the RoPE frequencies; loaders ignore them.
ROPE_BUFFER = buffers("self_attn.rotary_emb.inv_freq")
LAYER_TYPES = ("layer_types",)

_BLOCK = {**ATTENTION_NORM, **attention(), **FFN_NORM, **gated(), **ROPE_BUFFER}
_NORMED = {**ATTENTION_NORM, **attention(), **query_key_norms(), **FFN_NORM, **gated()}
_LATENT = {
    kind: {**ATTENTION_NORM, **latent_attention(query=query), **FFN_NORM, **gated()}
    for kind, query in (("latent queries", True), ("whole queries", False))
}

# One learned logit per head takes attention away from all tokens.
_SINKS = other("self_attn.sinks", "sinks", ("heads",))

_GRANITE_SWA: Table = {**_BLOCK, **_SINKS}
_GLM: Table = {**ATTENTION_NORM, **attention(), **FFN_NORM, **fused_gated()}
_UNGATED: Table = {**ATTENTION_NORM, **attention(), **FFN_NORM, **plain()}
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
    **other("self_attn.q_norm.weight", "query_norm", ("query_head", "head"), optional=True),
    **other("self_attn.k_norm.weight", "key_norm", ("key_value_head", "head"), optional=True),
    **gated(),
    **ROPE_BUFFER,
}

_PHI3: Table = {
    **ATTENTION_NORM,
    **fused("self_attn.qkv_proj", {"query": "query", "key": "key_value", "value": "value"}),
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
    **other("mlp.act_fn.alpha_p", "positive_slope", ("single",), optional=True),
    **other("mlp.act_fn.alpha_n", "negative_slope", ("single",), optional=True),
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
    **linear("self_attn.dt_proj", "value_step", "key_value_head", "value"),
    **other("self_attn.A", "value_decay", ("key_value_head",)),
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
    return heads_with(pairing="adjacent", normed=own, fixed=own)(config)


def _olmo_heads(config: Config) -> Heads | None:
    """Read OLMo's heads; where queries, keys and values are clipped, nothing can be turned."""
    clipped = config["clip_qkv"] is not None
    return heads_with(normed=clipped, gated=clipped)(config)


def _alike(block: Table, *model_types: str, **rules: Any) -> tuple[Family, ...]:
    """Return families whose blocks have the same tensors and whose configs the same rules."""
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
    *_alike({**attention(), **gated()}, "olmo", final_norm=(), heads=_olmo_heads),
    *_alike(_NANOCHAT, "nanochat", final_norm=(), heads=normed_heads),
    *_alike(_HUNYUAN, "hunyuan_v1_dense", heads=normed_heads),
    *_alike(_APERTUS, "apertus", heads=normed_heads),
    *_alike(_BITNET, "bitnet", heads=heads_with(fixed=True, gated=True)),
    Family("doge", {"dense": _DOGE, "experts": _DOGE_EXPERTS}, heads=no_heads),
    Family("youtu", _LATENT, heads=no_heads),
    Family("minicpm3", _LATENT, heads=no_heads, for_depth=_depth_scale),
)

_MORE_THAN_TEXT = "it reads more than text, and deepen grows decoders of text alone"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("emu3", "fuyu", "mllama", "got_ocr2", "phi4_multimodal"), _MORE_THAN_TEXT),
    "diffllama": (
        "how much each block subtracts in its differential attention depends on the block's index, "
        "and no config field can keep that for blocks that move up"
    ),
    "beam": (
        "its blocks scale the stream, and what they add to it, by their index, and no config field "
        "can keep that for blocks that move up"
    ),
    "hrm_text": (
        "its two stacks run many times over for every token, and config.json counts the runs and "
        "not the blocks"
    ),
    "blt": (
        "it has an encoder of bytes, a decoder of bytes and a stack over patches, each with blocks "
        "of its own, and finds patches with a fourth model"
    ),
}
