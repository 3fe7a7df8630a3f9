"""Mixtures with latent attention (MLA): the DeepSeek family and its kin.

Some choose for every query the few keys that it attends to, by an indexer: a small attention of its
own, which has no output.
"""

from typing import Any

from deepen.base.anatomy.experts import (
    BOTH_TYPES,
    DENSE_FIRST,
    FFN_TYPES,
    banked,
    either,
    expert_groups,
    mixture,
    router,
    shared,
    single,
)
from deepen.base.anatomy.families.refused import SHARED_CHOICE
from deepen.base.anatomy.family import Config, Family, Refusal
from deepen.base.anatomy.mixers import product
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    FFN_NORM,
    gated,
    latent_attention,
    linear,
    no_heads,
    norm,
)
from deepen.base.anatomy.tensors import Kinds, Table
from deepen.base.anatomy.vocabulary import Role

_INDEXER: Table = {
    **linear("self_attn.indexer.wq_b", "indexer_query", "indexer_query", "latent_query"),
    **linear("self_attn.indexer.wk", "indexer_key", "indexer_dimension", "residual"),
    **norm("self_attn.indexer.k_norm", "indexer_key_norm", "indexer_dimension"),
    **linear("self_attn.indexer.weights_proj", "indexer_weight", "indexer_head", "residual"),
}
_LATENT: Table = {**ATTENTION_NORM, **latent_attention(query=True), **FFN_NORM}
_WHOLE: Table = {**ATTENTION_NORM, **latent_attention(query=False), **FFN_NORM}
_INDEXED: Table = {**_LATENT, **_INDEXER}
_ROUTER: Table = router(correction="mlp.gate.e_score_correction_bias")
_BESIDE: Table = {**_ROUTER, **shared()}


def _either_query(beside: Table) -> dict[str, Table]:
    """Compose the blocks of a family whose queries may or may not be latent."""
    latent, plain = (mixture(around, beside, dense=gated()) for around in (_LATENT, _WHOLE))
    return either(latent, plain, "whole queries")


# What leaves the experts of A.X K1 is normed; what leaves its dense FFNs is not.
_AXK1 = mixture(
    _LATENT,
    {
        **_ROUTER,
        **shared(writes=False),
        **norm("post_mlp_layernorm", "ffn_output_norm", silent=0.0),
    },
    stored=single(writes=False),
    memory=banked(writes=False),
    renamed={"post_mlp_layernorm": "mlp.post_mlp_layernorm"},
    dense=gated(),
)


def _gated_norm(name: str, norm_role: Role, down: Role, up: Role) -> Table:
    """Describe a norm whose output is multiplied by a gate that it computes from itself."""
    return {
        **norm(f"{name}.norm", norm_role),
        **linear(f"{name}.W_down", down, "norm_gate", "residual"),
        **linear(f"{name}.W_up", up, "residual", "norm_gate", writes=False),
    }


_GATED_ATTENTION_NORM = _gated_norm(
    "input_layernorm", "attention_norm", "attention_norm_gate_down", "attention_norm_gate_up"
)
_GATED_FFN_NORM = _gated_norm(
    "post_attention_layernorm", "ffn_norm", "ffn_norm_gate_down", "ffn_norm_gate_up"
)


def _axk2() -> dict[str, Table]:
    """Compose the blocks of A.X K2: one projection makes the queries and a gate on the output."""
    query = "self_attn.q_b_proj"
    attention: Table = {
        **_GATED_ATTENTION_NORM,
        **latent_attention(query=True),
        **linear(query, "latent_query_up", "query_and_gate", "latent_query_pair"),
        **_INDEXER,
    }
    renamed = {"W_down": "mlp.fc1", "W_up": "mlp.fc2", "q_b_proj": "q_gate_proj"}
    dense = mixture({**attention, **FFN_NORM}, {}, renamed=renamed, dense=gated())
    normed = {**attention, **_GATED_FFN_NORM}
    return {**dense, **mixture(normed, _BESIDE, renamed=renamed)}


def _shares_its_choice(config: Config) -> bool:
    """Whether blocks attend to the keys that the indexer of a block below chose."""
    return "shared" in (config.get("indexer_types") or ())


def _family(model_type: str, kinds: Kinds, *lists: str, **rules: Any) -> Family:
    """Return a family; multi-token-prediction blocks stand after its last block."""
    return Family(
        model_type,
        kinds,
        per_layer_lists=lists,
        prefix_counts=DENSE_FIRST,
        trailing_field="num_nextn_predict_layers",
        sizes=expert_groups,
        heads=no_heads,
        bilinear=True,
        **rules,
    )


# Blocks of dots3 attend to the keys that an indexer chooses, or to those inside a window.
_DOTS_ATTENTION: Table = {
    **ATTENTION_NORM,
    **latent_attention(query=True),
    **norm("self_attn.k_rope_only_layernorm", "rope_key_norm", "rope"),
    **linear("self_attn.g_proj", "attention_gate", "heads", "residual"),
}
_DOTS_MIXERS: Kinds = {
    "window": _DOTS_ATTENTION,
    "indexed": {**_DOTS_ATTENTION, **_INDEXER},
}
_DOTS_BESIDE: Table = {**FFN_NORM, **_BESIDE}
_DOTS_FFNS: Kinds = {
    "dense": {**FFN_NORM, **gated()},
    "experts": {**_DOTS_BESIDE, **single()},
    "experts in memory": {**_DOTS_BESIDE, **banked()},
}
# Blocks of either kind have heads and latent vectors of sizes of their own.
_DOTS_AXES = {
    axis for spec in _DOTS_ATTENTION.values() for part in spec.parts for axis in part.axes
}

FAMILIES = (
    _family("deepseek_v2", _either_query({**router(), **shared()})),
    _family("deepseek_v3", _either_query(_BESIDE)),
    _family("deepseek_v32", mixture(_INDEXED, _BESIDE, dense=gated()), *BOTH_TYPES),
    _family("glm4_moe_lite", _either_query(_BESIDE), *FFN_TYPES),
    _family(
        "glm_moe_dsa",
        mixture(_INDEXED, _BESIDE, dense=gated()),
        *BOTH_TYPES,
        "indexer_types",
        refusals=(Refusal(_shares_its_choice, SHARED_CHOICE),),
    ),
    _family("axk1", _AXK1, *FFN_TYPES),
    _family("axk2", _axk2(), *BOTH_TYPES),
    Family(
        "dots3_note_text",
        product(_DOTS_MIXERS, _DOTS_FFNS),
        per_layer_lists=BOTH_TYPES,
        prefix_counts=DENSE_FIRST,
        sizes=expert_groups,
        varying=frozenset(_DOTS_AXES - {"residual"}),
        carried=("model.mtp.",),
        heads=no_heads,
        bilinear=True,
    ),
)
