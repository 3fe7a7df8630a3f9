"""Latent attention to the keys that an indexer chooses, or to those inside a window, by block."""

from deepen.base.anatomy.families.llama import (
    ATTENTION_NORM,
    FFN_NORM,
    gated,
    latent_attention,
    no_heads,
)
from deepen.base.anatomy.families.mixers import Kinds, product
from deepen.base.anatomy.families.mixtures import banked, expert_groups, router, shared, single
from deepen.base.anatomy.family import Family
from deepen.base.anatomy.tensors import Table, linear, norm

_DOTS_ATTENTION: Table = {
    **ATTENTION_NORM,
    **latent_attention(query=True),
    **norm("self_attn.k_rope_only_layernorm", "rope_key_norm", "rope"),
    **linear("self_attn.g_proj", "attention_gate", "heads", "residual"),
}
_DOTS_MIXERS: Kinds = {
    "window": _DOTS_ATTENTION,
    "indexed": {
        **_DOTS_ATTENTION,
        **linear("self_attn.indexer.wq_b", "indexer_query", "indexer_query", "latent_query"),
        **linear("self_attn.indexer.wk", "indexer_key", "indexer_head", "residual"),
        **norm("self_attn.indexer.k_norm", "indexer_key_norm", "indexer_head"),
        **linear("self_attn.indexer.weights_proj", "indexer_weight", "indexer_heads", "residual"),
    },
}
_DOTS_BESIDE: Table = {
    **FFN_NORM,
    **router(correction="mlp.gate.e_score_correction_bias"),
    **shared(),
}
_DOTS_FFNS: Kinds = {
    "dense": {**FFN_NORM, **gated()},
    "experts": {**_DOTS_BESIDE, **single()},
    "experts in memory": {**_DOTS_BESIDE, **banked()},
}
# Blocks of either kind have heads and latent vectors of sizes of their own.
_SIZED = {axis for spec in _DOTS_ATTENTION.values() for part in spec.parts for axis in part.axes}

FAMILIES = (
    Family(
        "dots3_note_text",
        product(_DOTS_MIXERS, _DOTS_FFNS),
        per_layer_lists=("layer_types", "mlp_layer_types"),
        prefix_counts=("first_k_dense_replace",),
        sizes=expert_groups,
        varying=frozenset(_SIZED - {"residual"}),
        carried=("model.mtp.",),
        heads=no_heads,
    ),
)
