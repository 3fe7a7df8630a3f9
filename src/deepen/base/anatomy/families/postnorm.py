"""Families with a norm on the way out: what leaves attention and FFN is normed before it is added.

Zero output projections would be an identity there too, but the norm scales any small output up to
size one, so that the first optimizer step would throw the model far off. These blocks are silenced
by the gain of the norm itself, and their output projections stay.

Gemma 4 has more that is normed on the way out than Gemma 2 and 3: queries, keys and values inside
the attention, and beside the FFN a mixture of experts. What leaves the block is then scaled.
"""

from dataclasses import replace

from deepen.base.anatomy.families.llama import (
    ATTENTION_NORM,
    FFN_NORM,
    attention,
    gated,
    query_key_norms,
)
from deepen.base.anatomy.family import Config, Family, Heads, Refusal, rope_heads
from deepen.base.anatomy.tensors import Table, bank, fused, linear, norm, other

ATTENTION_OUTPUT_NORM = norm("post_attention_layernorm", "attention_output_norm", silent=0.0)
FFN_OUTPUT_NORM = norm("post_feedforward_layernorm", "ffn_output_norm", silent=0.0)
GEMMA_FFN_NORM = norm("pre_feedforward_layernorm", "ffn_norm")
LAYER_TYPES = ("layer_types",)


def normed_heads(config: Config) -> Heads | None:
    """Read the heads of families that norm queries and keys."""
    heads = rope_heads(config)
    return heads and replace(heads, normed=True)


def _glm4_heads(config: Config) -> Heads | None:
    """Read GLM-4's heads: RoPE turns neighbouring dimensions."""
    heads = rope_heads(config)
    return heads and replace(heads, pairing="adjacent")


# Gemma 2 and 3 compute (1 + weight) · x: the gain is zero at -1.
_GEMMA: Table = {
    **ATTENTION_NORM,
    **attention(writes=False),
    **norm("post_attention_layernorm", "attention_output_norm", silent=-1.0),
    **GEMMA_FFN_NORM,
    **gated(writes=False),
    **norm("post_feedforward_layernorm", "ffn_output_norm", silent=-1.0),
}

_VAULTGEMMA: Table = {**ATTENTION_NORM, **attention(), **GEMMA_FFN_NORM, **gated()}

# Nothing is normed on the way in.
_OUTPUT_NORMED: Table = {
    **attention(writes=False),
    **ATTENTION_OUTPUT_NORM,
    **gated(writes=False),
    **FFN_OUTPUT_NORM,
}

# OLMo norms all queries of a token as one vector, and all its keys.
_OLMO: Table = {
    **_OUTPUT_NORMED,
    **norm("self_attn.q_norm", "query_norm", "query"),
    **norm("self_attn.k_norm", "key_norm", "key_value"),
}

_GLM4: Table = {
    **ATTENTION_NORM,
    **attention(writes=False),
    **norm("post_self_attn_layernorm", "attention_output_norm", silent=0.0),
    **FFN_NORM,
    **fused("mlp.gate_up_proj", {"gate": "ffn", "up": "ffn"}),
    **linear("mlp.down_proj", "ffn_output", "residual", "ffn", writes=False),
    **norm("post_mlp_layernorm", "ffn_output_norm", silent=0.0),
}

_HYPERCLOVAX: dict[str, Table] = {
    "block": {
        **ATTENTION_NORM,
        **attention(writes=False),
        **norm("post_norm1", "attention_output_norm", silent=0.0),
        **FFN_NORM,
        **gated(writes=False),
        **norm("post_norm2", "ffn_output_norm", silent=0.0),
    },
    "without norms on the way out": {**ATTENTION_NORM, **attention(), **FFN_NORM, **gated()},
}


def _gemma4(*, values: bool, experts: bool) -> Table:
    """Describe a block of Gemma 4.

    Args:
        values: Whether values have a projection of their own; else they are the keys before norm
            and RoPE.
        experts: Whether a mixture of experts runs beside the FFN, on the same input.
    """
    attended = attention(writes=False)
    if not values:
        attended = {n: s for n, s in attended.items() if not n.startswith("self_attn.v_proj")}
    unit = "shared" if experts else ""
    mixture: Table = {
        **norm("post_feedforward_layernorm_1", "shared_ffn_norm"),
        **norm("pre_feedforward_layernorm_2", "expert_ffn_norm"),
        **other("router.scale", "router_scale", ("residual",)),
        **linear("router.proj", "router", "expert", "residual"),
        **other("router.per_expert_scale", "expert_scale", ("expert",)),
        **bank(
            "experts.gate_up_proj",
            {"gate": ("expert_ffn", "residual"), "up": ("expert_ffn", "residual")},
            split="rows",
        ),
        **bank("experts.down_proj", {"ffn_output": ("residual", "expert_ffn")}, writes=False),
        **norm("post_feedforward_layernorm_2", "expert_output_norm"),
    }
    return {
        **ATTENTION_NORM,
        **attended,
        **query_key_norms(),
        **ATTENTION_OUTPUT_NORM,
        **GEMMA_FFN_NORM,
        **gated(axis="shared_ffn" if experts else "ffn", unit=unit, writes=False),
        **(mixture if experts else {}),
        **FFN_OUTPUT_NORM,
        # The whole stream is multiplied by it, not only what the block adds.
        **other("layer_scalar", "residual_scale", ("single",), silent=1.0),
    }


_GEMMA4: dict[str, Table] = {
    f"{attending}, {ffn}": _gemma4(values=values, experts=experts)
    for attending, values in (("attention", True), ("attention with keys as values", False))
    for ffn, experts in (("dense", False), ("experts", True))
}

_GEMMA4_REFUSALS = (
    Refusal(
        lambda config: bool(config.get("hidden_size_per_layer_input")),
        "its per-layer input embeddings hold a slice for every block in one table, and a new block "
        "would need one of its own",
    ),
    Refusal(
        lambda config: bool(config.get("num_kv_shared_layers")),
        "its upper blocks use the keys and values of the last blocks below them, and a new block "
        "could come in between",
    ),
)

_WIDTHS = frozenset({"query", "key_value", "value", "attended", "head"})

FAMILIES = (
    Family("gemma2", {"block": _GEMMA}, per_layer_lists=LAYER_TYPES),
    Family(
        "gemma3_text",
        {"block": {**_GEMMA, **query_key_norms()}},
        per_layer_lists=LAYER_TYPES,
        heads=normed_heads,
    ),
    *(
        Family(
            model_type,
            _GEMMA4,
            per_layer_lists=LAYER_TYPES,
            # Values are normed too, and the heads of full attention are wider.
            heads=lambda config: None,
            varying=_WIDTHS,
            refusals=_GEMMA4_REFUSALS,
        )
        for model_type in ("gemma4_text", "gemma4_unified_text")
    ),
    Family("vaultgemma", {"block": _VAULTGEMMA}, per_layer_lists=LAYER_TYPES),
    Family("olmo2", {"block": _OLMO}, heads=normed_heads),
    Family("olmo3", {"block": _OLMO}, per_layer_lists=LAYER_TYPES, heads=normed_heads),
    Family("glm4", {"block": _GLM4}, heads=_glm4_heads),
    Family(
        "exaone4",
        {"block": {**_OUTPUT_NORMED, **query_key_norms()}},
        per_layer_lists=LAYER_TYPES,
        heads=normed_heads,
    ),
    Family("hyperclovax", _HYPERCLOVAX),
)


def _vision(text: str) -> str:
    """Say what to do with a model that holds a text model beside others."""
    return (
        f"it reads images too; save its text model as a checkpoint of its own, of family {text!r}, "
        f"as docs/architectures.md shows, and grow that"
    )


_GEMMA3N = (
    "its blocks mix four streams by AltUp and add to them what no weight can turn off, and its "
    "per-layer embeddings and shared keys and values are counted by block"
)
_ASSISTANT = "its blocks use the keys and values of another model, which it speeds up"

REFUSED: dict[str, str] = {
    "gemma3": _vision("gemma3_text"),
    "gemma4": _vision("gemma4_text"),
    "gemma4_unified": _vision("gemma4_unified_text"),
    "gemma3n": _GEMMA3N,
    "gemma3n_text": _GEMMA3N,
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
}
