"""Mixtures of experts.

Those with latent attention are in ``latent_mixtures``, those whose routers have a bias for balance
in ``balanced_mixtures``.
"""

from deepen.base.anatomy.experts import (
    BOTH_TYPES,
    DENSE_FIRST,
    SPARSE_MOE,
    W123,
    banked,
    dense_listed,
    either,
    mixture,
    router,
    shared,
    single,
)
from deepen.base.anatomy.family import Config, Family, Heads
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT_NORM,
    FFN_NORM,
    FFN_OUTPUT_NORM,
    LAYER_TYPES,
    NORMED,
    PLAIN,
    QUERY_KEY_VALUE,
    adjacent_heads,
    attention,
    clipped,
    fused,
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

_MIXTRAL = (
    Family(
        "mixtral",
        mixture(PLAIN, router("block_sparse_moe.gate"), stored=W123, renamed=SPARSE_MOE),
        heads=rope_heads,
        bilinear=True,
    ),
    Family(
        "phimoe",
        mixture(
            PLAIN,
            router("block_sparse_moe.gate"),
            stored=W123,
            renamed={"block_sparse_moe.gate": "mlp.router"},
        ),
        final_norm=("model.norm.weight", "model.norm.bias"),
        optional_outside=("lm_head.bias",),
        heads=rope_heads,
        bilinear=True,
    ),
)


_QWEN = (
    Family(
        "qwen2_moe",
        mixture(
            PLAIN,
            {
                **router(),
                **shared("mlp.shared_expert"),
                **linear("mlp.shared_expert_gate", "shared_gate", "one", "residual"),
            },
            dense=gated(),
        ),
        per_layer_lists=LAYER_TYPES,
        index_lists=("mlp_only_layers",),
        prefix_counts=("max_window_layers",),
        explicit=dense_listed,
        heads=rope_heads,
        bilinear=True,
    ),
    Family(
        "qwen3_moe",
        mixture(NORMED, router(), dense=gated()),
        index_lists=("mlp_only_layers",),
        explicit=dense_listed,
        heads=normed_heads,
        bilinear=True,
    ),
    Family(
        "flint",
        mixture(
            {**NORMED, **sinks("self_attn.softmax_offset")},
            {**router(), **shared("mlp.shared_expert")},
            renamed={"softmax_offset": "sinks"},
            dense=gated(),
        ),
        per_layer_lists=LAYER_TYPES,
        index_lists=("mlp_only_layers",),
        explicit=dense_listed,
        heads=normed_heads,
        bilinear=True,
    ),
    Family(
        "mellum",
        mixture(NORMED, router(), dense=gated()),
        carried=("mtp.",),
        per_layer_lists=BOTH_TYPES,
        heads=normed_heads,
        bilinear=True,
    ),
)

# What leaves attention and FFN is normed; see ``postnorm``.
_OLMO = (
    Family(
        "olmoe",
        mixture({**PLAIN, **wide_norms()}, router()),
        heads=clipped(normed_heads),
        bilinear=True,
    ),
    Family(
        "flex_olmo",
        mixture(
            {
                **attention(writes=False),
                **wide_norms(),
                **ATTENTION_OUTPUT_NORM,
                **FFN_OUTPUT_NORM,
            },
            router(),
            stored=single(writes=False),
            memory=banked(writes=False),
        ),
        heads=normed_heads,
        bilinear=True,
    ),
)

# One norm before attention and FFN, which run side by side.
_COHERE_AROUND: Table = {**ATTENTION_NORM, **attention()}
_COHERE = Family(
    "cohere2_moe",
    either(
        mixture(_COHERE_AROUND, router(), dense=gated()),
        mixture(_COHERE_AROUND, {**router(), **shared()}),
        "shared experts",
    ),
    per_layer_lists=BOTH_TYPES,
    prefix_counts=DENSE_FIRST,
    heads=adjacent_heads,
    bilinear=True,
)

_GRANITE_STORED: Table = banked(
    "block_sparse_moe", gate_up="input_linear.weight", down="output_linear.weight"
)
_GRANITE_SHARED: Table = fused_gated(
    "shared_mlp", "input_linear", "output_linear", axis="shared_ffn", unit="shared"
)


def _granite(around: Table, beside: Table) -> dict[str, Table]:
    """Compose the blocks of Granite's mixtures."""
    return mixture(
        around,
        {**router("block_sparse_moe.router.layer"), **beside},
        stored=_GRANITE_STORED,
        memory=banked("block_sparse_moe.experts"),
        renamed={"router.layer": "router"},
    )


_GRANITE_SINKS: Table = {**PLAIN, **sinks()}

_GRANITE = (
    Family("granitemoe", _granite(PLAIN, {}), heads=rope_heads, bilinear=True),
    Family(
        "granitemoeshared",
        either(_granite(PLAIN, {}), _granite(PLAIN, _GRANITE_SHARED), "shared expert"),
        heads=rope_heads,
        bilinear=True,
    ),
    Family(
        "granitemoe_swa",
        either(
            _granite(_GRANITE_SINKS, {}),
            _granite(_GRANITE_SINKS, _GRANITE_SHARED),
            "shared expert",
        ),
        per_layer_lists=(*LAYER_TYPES, "layer_rope_theta"),
        heads=rope_heads,
        bilinear=True,
    ),
)

_GPT_OSS = Family(
    "gpt_oss",
    {
        "experts": {
            **PLAIN,
            **sinks(),
            **router("mlp.router"),
            **banked(split="alternate", transposed=True, biased=True),
        }
    },
    per_layer_lists=LAYER_TYPES,
    # Up projections are cut off, and one is added.
    bilinear=False,
    heads=rope_heads,
)


def _llama4_heads(config: Config) -> Heads | None:
    """Read Llama 4's heads: queries and keys are brought to one length after RoPE."""
    return heads_with(planes="adjacent", normed=bool(config.get("use_qk_norm")))(config)


_LLAMA4 = Family(
    "llama4_text",
    {
        "dense": {**PLAIN, **gated("feed_forward")},
        "experts": {
            **PLAIN,
            **router("feed_forward.router"),
            **shared("feed_forward.shared_expert"),
            **banked("feed_forward.experts", transposed=True),
        },
    },
    per_layer_lists=("no_rope_layers", *LAYER_TYPES),
    index_lists=("moe_layers",),
    heads=_llama4_heads,
    bilinear=True,
    embeds_apart=True,
)

_HUNYUAN = Family(
    "hunyuan_v1_moe",
    mixture(
        {
            **ATTENTION_NORM,
            **attention(),
            **query_key_norms(query="query_layernorm", key="key_layernorm"),
            **FFN_NORM,
        },
        {**router("mlp.gate.wg"), **shared("mlp.shared_mlp")},
    ),
    per_layer_lists=("moe_topk", "moe_intermediate_size", "num_shared_expert"),
    heads=normed_heads,
    bilinear=True,
)

_ARIA = Family(
    "aria_text",
    mixture(
        PLAIN,
        {**router("mlp.router"), **shared()},
        stored=banked(gate_up="fc1.weight", down="fc2.weight", transposed=True),
        memory=banked(transposed=True),
    ),
    heads=rope_heads,
    bilinear=True,
)

# A mixture of attentions too, which share keys and values. Its experts have a router of their own,
# so that they are no units: their order stays.
_JETMOE = Family(
    "jetmoe",
    {
        "block": {
            **ATTENTION_NORM,
            **fused("self_attention.kv_proj", {"key": "key_value", "value": "key_value"}),
            **linear(
                "self_attention.experts.router.layer",
                "attention_router",
                "attention_expert",
                "residual",
            ),
            **other(
                "self_attention.experts.input_linear.weight",
                "expert_queries",
                ("attention_expert", "attended", "residual"),
            ),
            **other(
                "self_attention.experts.output_linear.weight",
                "expert_attention_outputs",
                ("attention_expert", "residual", "attended"),
                silent=0.0,
            ),
            **other(
                "self_attention.experts.bias", "attention_output_bias", ("residual",), silent=0.0
            ),
            **FFN_NORM,
            **router("mlp.router.layer"),
            **banked("mlp", gate_up="input_linear.weight", down="output_linear.weight"),
            **other("mlp.bias", "ffn_output_bias", ("residual",), silent=0.0),
        }
    },
    heads=no_heads,
    bilinear=True,
    preload=("JetMoeAttention",),
)


def _dbrx_heads(config: Config) -> Heads:
    """Read DBRX's heads."""
    heads, key_value = config["n_heads"], config["attn_config"]["kv_n_heads"]
    width = config["d_model"] // heads
    return Heads(
        heads, key_value, width, width, rotary=width, normed=False, fixed=False, gated=False
    )


# One matrix holds the rows of all experts, and the config alone tells where one ends; so they are
# no units, and their order stays.
_DBRX = Family(
    "dbrx",
    {
        "block": {
            **norm("norm_attn_norm.norm_1", "attention_norm"),
            **fused("norm_attn_norm.attn.Wqkv", QUERY_KEY_VALUE),
            **linear("norm_attn_norm.attn.out_proj", "attention_output", "residual", "attended"),
            **norm("norm_attn_norm.norm_2", "ffn_norm"),
            **router("ffn.router.layer"),
            **other("ffn.experts.mlp.w1", "expert_gates", ("expert_rows", "residual")),
            **other("ffn.experts.mlp.v1", "expert_ups", ("expert_rows", "residual")),
            **other(
                "ffn.experts.mlp.w2", "expert_outputs", ("expert_rows", "residual"), silent=0.0
            ),
        }
    },
    embeddings="transformer.wte.weight",
    final_norm=("transformer.norm_f.weight",),
    block_prefix="transformer.blocks.",
    depth_field="n_layers",
    heads=clipped(_dbrx_heads),
    preload=("DbrxExperts",),
)

FAMILIES = (
    *_MIXTRAL,
    *_QWEN,
    *_OLMO,
    _GPT_OSS,
    *_GRANITE,
    _HUNYUAN,
    _COHERE,
    _LLAMA4,
    _ARIA,
    _JETMOE,
    _DBRX,
)
