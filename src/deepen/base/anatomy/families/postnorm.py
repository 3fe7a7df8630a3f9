"""Families with a norm on the way out: what leaves attention and FFN is normed before it is added.

Zero output projections would be an identity there too, but the norm scales any small output up to
size one, so that the first optimizer step would throw the model far off. These blocks are silenced
by the gain of the norm itself, and their output projections stay.

Gemma 4 has more that is normed on the way out than Gemma 2 and 3: queries, keys and values inside
the attention, and beside the FFN a mixture of experts. What leaves the block is then scaled.
"""

from typing import Any

from deepen.base.anatomy.family import Family, Refusal
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT_NORM,
    FFN_NORM,
    FFN_OUTPUT_NORM,
    LAYER_TYPES,
    PLAIN,
    adjacent_heads,
    attention,
    bank,
    fused_gated,
    gated,
    linear,
    no_heads,
    norm,
    normed_heads,
    other,
    query_key_norms,
    rope_heads,
    wide_norms,
)
from deepen.base.anatomy.tensors import Table
from deepen.base.anatomy.vocabulary import Axis

_GEMMA_FFN_NORM = norm("pre_feedforward_layernorm", "ffn_norm")

# Gemma 2 and 3 compute (1 + weight) · x: the gain is zero at -1.
_GEMMA: Table = {
    **ATTENTION_NORM,
    **attention(writes=False),
    **norm("post_attention_layernorm", "attention_output_norm", silent=-1.0),
    **_GEMMA_FFN_NORM,
    **gated(writes=False),
    **norm("post_feedforward_layernorm", "ffn_output_norm", silent=-1.0),
}

_VAULTGEMMA: Table = {**ATTENTION_NORM, **attention(), **_GEMMA_FFN_NORM, **gated()}

# Nothing is normed on the way in.
_OUTPUT_NORMED: Table = {
    **attention(writes=False),
    **ATTENTION_OUTPUT_NORM,
    **gated(writes=False),
    **FFN_OUTPUT_NORM,
}

_OLMO: Table = {**_OUTPUT_NORMED, **wide_norms()}

_GLM4: Table = {
    **ATTENTION_NORM,
    **attention(writes=False),
    **norm("post_self_attn_layernorm", "attention_output_norm", silent=0.0),
    **FFN_NORM,
    **fused_gated(writes=False),
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
    "without norms on the way out": {**PLAIN, **gated()},
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
        **_GEMMA_FFN_NORM,
        **gated(axis="shared_ffn" if experts else "ffn", unit=unit, writes=False),
        **(mixture if experts else {}),
        **FFN_OUTPUT_NORM,
        # The whole stream is multiplied by it, not only what the block adds.
        **other("layer_scalar", "residual_scale", ("one",), silent=1.0),
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

_WIDTHS: frozenset[Axis] = frozenset({"query", "key_value", "value", "attended", "head"})

_ROPE: dict[str, Any] = {"heads": rope_heads, "bilinear": True}
_NORMED: dict[str, Any] = {"heads": normed_heads, "bilinear": True}

FAMILIES = (
    Family("gemma2", {"block": _GEMMA}, per_layer_lists=LAYER_TYPES, **_ROPE),
    Family(
        "gemma3_text",
        {"block": {**_GEMMA, **query_key_norms()}},
        per_layer_lists=LAYER_TYPES,
        **_NORMED,
    ),
    *(
        Family(
            model_type,
            _GEMMA4,
            per_layer_lists=LAYER_TYPES,
            # Values are normed too, and the heads of full attention are wider.
            heads=no_heads,
            bilinear=True,
            varying=_WIDTHS,
            refusals=_GEMMA4_REFUSALS,
        )
        for model_type in ("gemma4_text", "gemma4_unified_text")
    ),
    Family("vaultgemma", {"block": _VAULTGEMMA}, per_layer_lists=LAYER_TYPES, **_ROPE),
    Family("olmo2", {"block": _OLMO}, **_NORMED),
    Family("olmo3", {"block": _OLMO}, per_layer_lists=LAYER_TYPES, **_NORMED),
    Family("glm4", {"block": _GLM4}, heads=adjacent_heads, bilinear=True),
    Family(
        "exaone4",
        {"block": {**_OUTPUT_NORMED, **query_key_norms()}},
        per_layer_lists=LAYER_TYPES,
        **_NORMED,
    ),
    Family("hyperclovax", _HYPERCLOVAX, **_ROPE),
)
