"""Mixtures whose routers have a bias for balance, which only their choice of experts sees."""

from deepen.base.anatomy.experts import (
    BOTH_TYPES,
    DENSE_FIRST,
    FFN_TYPES,
    SPARSE_MOE,
    W123,
    banked,
    either,
    expert_groups,
    mixture,
    router,
    shared,
    single,
)
from deepen.base.anatomy.family import Config, Family, Refusal
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT_NORM,
    FFN_NORM,
    LAYER_TYPES,
    NORMED,
    PLAIN,
    adjacent_heads,
    attention,
    fused_gated,
    gated,
    heads_with,
    linear,
    no_heads,
    norm,
    normed_heads,
    other,
    query_key_norms,
    rope_heads,
    sinks,
    wide_norms,
)
from deepen.base.anatomy.tensors import Table

_ROUTER: Table = router(correction="mlp.gate.e_score_correction_bias")
_BESIDE: Table = {**_ROUTER, **shared()}

_MTP = "num_nextn_predict_layers"

_MINIMAX_M2 = Family(
    "minimax_m2",
    mixture(
        {**PLAIN, **wide_norms()},
        router("block_sparse_moe.gate", "block_sparse_moe.e_score_correction_bias"),
        stored=W123,
        renamed=SPARSE_MOE,
    ),
    heads=normed_heads,
    bilinear=True,
)

_GLM = (
    Family(
        "glm4_moe",
        either(
            mixture(PLAIN, _BESIDE, dense=gated()),
            mixture(NORMED, _BESIDE, dense=gated()),
            "normed queries and keys",
        ),
        prefix_counts=DENSE_FIRST,
        trailing_field=_MTP,
        sizes=expert_groups,
        heads=normed_heads,
        bilinear=True,
    ),
    Family(
        "solar_open", mixture(PLAIN, _BESIDE), sizes=expert_groups, heads=rope_heads, bilinear=True
    ),
    Family(
        "dots1",
        mixture(NORMED, _BESIDE, dense=gated()),
        per_layer_lists=LAYER_TYPES,
        prefix_counts=("max_window_layers", *DENSE_FIRST),
        sizes=expert_groups,
        heads=normed_heads,
        bilinear=True,
    ),
    Family(
        "exaone_moe",
        mixture(
            NORMED,
            {**router(correction="mlp.e_score_correction_bias"), **shared()},
            renamed={"mlp.e_score": "mlp.gate.e_score"},
            dense=gated(),
        ),
        per_layer_lists=BOTH_TYPES,
        prefix_counts=DENSE_FIRST,
        carried=("mtp.",),
        sizes=expert_groups,
        heads=normed_heads,
        bilinear=True,
    ),
    Family(
        "hy_v3",
        mixture(
            NORMED,
            {**router("mlp.router.gate", "mlp.expert_bias"), **shared("mlp.shared_mlp")},
            renamed={
                "mlp.router.gate": "mlp.gate",
                "mlp.expert_bias": "mlp.e_score_correction_bias",
                "mlp.shared_mlp": "mlp.shared_experts",
            },
            dense=gated(),
        ),
        per_layer_lists=FFN_TYPES,
        prefix_counts=DENSE_FIRST,
        trailing_field=_MTP,
        heads=normed_heads,
        bilinear=True,
    ),
)


def _all_from_one_on(config: Config) -> bool:
    """Whether all of Ernie's blocks have experts, from the first that has."""
    last = config["num_hidden_layers"] - 1
    return config["moe_layer_interval"] == 1 and config["moe_layer_end_index"] == last


_STATICS: Table = {
    **router(),
    **other(
        "mlp.moe_statics.e_score_correction_bias",
        "router_correction",
        ("one", "expert"),
    ),
}
_ERNIE_RENAMED = {"mlp.moe_statics": "mlp.gate.moe_statics"}

_ERNIE = Family(
    "ernie4_5_moe",
    either(
        mixture(PLAIN, _STATICS, renamed=_ERNIE_RENAMED, dense=gated()),
        mixture(PLAIN, {**_STATICS, **shared()}, renamed=_ERNIE_RENAMED),
        "shared experts",
    ),
    optional_outside=("lm_head.bias",),
    carried=("model.mtp",),
    prefix_counts=("moe_layer_start_index",),
    # -1 stands for the last block.
    explicit=lambda config: {"moe_layer_end_index": -1},
    heads=adjacent_heads,
    bilinear=True,
    refusals=(
        Refusal(
            lambda config: not _all_from_one_on(config),
            "its config can only say in which range of blocks every n-th one has experts, and new "
            "blocks would break the range (moe_layer_interval, moe_layer_end_index)",
        ),
    ),
)

# Norms before and after attention and FFN, and a gate on what the heads hand on.
_AFMOE = Family(
    "afmoe",
    mixture(
        {
            **ATTENTION_NORM,
            **attention(writes=False),
            **query_key_norms(),
            **linear("self_attn.gate_proj", "attention_gate", "attended", "residual"),
            **ATTENTION_OUTPUT_NORM,
            **norm("pre_mlp_layernorm", "ffn_norm"),
            **norm("post_mlp_layernorm", "ffn_output_norm", silent=0.0),
        },
        {**router("mlp.router.gate", "mlp.expert_bias"), **shared(writes=False)},
        stored=single(writes=False),
        memory=banked(writes=False),
        dense=gated(writes=False),
    ),
    per_layer_lists=LAYER_TYPES,
    prefix_counts=("num_dense_layers",),
    heads=heads_with(normed=True, gated=True),
    bilinear=True,
)

_KOLIBRI = Family(
    "kolibri1",
    mixture(
        {
            **ATTENTION_NORM,
            **attention(writes=False),
            **query_key_norms(),
            **norm("post_attn_norm", "attention_output_norm", silent=0.0),
            **FFN_NORM,
            **norm("post_ffn_norm", "ffn_output_norm", silent=0.0),
        },
        {**router(correction="moe.router.expert_bias"), **shared(writes=False)},
        stored=single(writes=False),
        memory=banked(writes=False),
        renamed={
            "moe.router.expert_bias": "mlp.gate.e_score_correction_bias",
            "post_attn_norm": "post_self_attn_layernorm",
            "post_ffn_norm": "post_mlp_layernorm",
        },
    ),
    per_layer_lists=LAYER_TYPES,
    heads=normed_heads,
    bilinear=True,
)

# The heads of these two differ between blocks in number.
_UNEVEN = (
    Family(
        "laguna",
        mixture(
            {
                **NORMED,
                **linear("self_attn.g_proj", "attention_gate", "attention_gate", "residual"),
            },
            {
                **router(correction="mlp.experts.e_score_correction_bias"),
                **shared("mlp.shared_expert"),
            },
            renamed={
                "mlp.experts.e_score": "mlp.gate.e_score",
                "mlp.shared_expert.": "mlp.shared_experts.",
            },
            dense=gated(),
        ),
        per_layer_lists=(*BOTH_TYPES, "num_attention_heads_per_layer"),
        heads=no_heads,
        bilinear=True,
        varying=frozenset({"query", "attended", "attention_gate"}),
    ),
    Family(
        "mimo_v2_flash",
        either(
            mixture(PLAIN, _ROUTER, dense=gated()),
            mixture(
                {**PLAIN, **sinks("self_attn.attention_sink_bias")},
                _ROUTER,
                renamed={"attention_sink_bias": "sinks"},
                dense=gated(),
            ),
            "sinks",
        ),
        per_layer_lists=BOTH_TYPES,
        carried=("model.mtp.",),
        sizes=expert_groups,
        heads=no_heads,
        bilinear=True,
        varying=frozenset({"key_value", "value"}),
    ),
)

# The keys of one token are chosen in runs, for each KV group by a head of an indexer.
_M3_INDEXER: Table = {
    **linear("self_attn.indexer.q_proj", "indexer_query", "group_indexer_query", "residual"),
    **linear("self_attn.indexer.k_proj", "indexer_key", "indexer_dimension", "residual"),
    **norm("self_attn.indexer.q_norm", "indexer_query_norm", "indexer_dimension"),
    **norm("self_attn.indexer.k_norm", "indexer_key_norm", "indexer_dimension"),
}
_M3_FFN: dict[str, Table] = {
    "dense": fused_gated(),
    "experts": {
        **_ROUTER,
        **fused_gated("mlp.shared_experts", axis="shared_ffn", unit="shared"),
        **banked(),
    },
}
_MINIMAX_M3 = Family(
    "minimax_m3_vl_text",
    {
        f"{attending}, {kind}": {**NORMED, **indexer, **ffn}
        for attending, indexer in (("full", {}), ("indexed", _M3_INDEXER))
        for kind, ffn in _M3_FFN.items()
    },
    per_layer_lists=BOTH_TYPES,
    heads=normed_heads,
    norm_offset=1.0,
    bilinear=False,
)


FAMILIES = (*_GLM, _MINIMAX_M2, _MINIMAX_M3, _ERNIE, _AFMOE, _KOLIBRI, *_UNEVEN)
