"""Hybrids of full attention and linear attention: gated delta networks, Kimi delta attention.

Kinds of block are composed: one kind for each token mixer, FFN and layout that go together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deepen.base.anatomy.experts import (
    BOTH_TYPES,
    DENSE_FIRST,
    banked,
    dense_listed,
    expert_groups,
    router,
    shared,
    single,
)
from deepen.base.anatomy.family import Config, Family
from deepen.base.anatomy.mixers import convs, delta, linear_attention, product
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    FFN_NORM,
    LAYER_TYPES,
    attention,
    fused,
    gated,
    heads_with,
    latent_attention,
    linear,
    no_heads,
    norm,
    normed_heads,
    other,
    query_key_norms,
    wide_norms,
)
from deepen.base.anatomy.tensors import Kinds, Table
from deepen.base.anatomy.vocabulary import Axis

_MTP = ("mtp.",)


_GATED_ATTENTION: Table = {
    **ATTENTION_NORM,
    **attention(),
    **fused("self_attn.q_proj", {"query": "query", "attention_gate": "attended"}, split="per_head"),
    **query_key_norms(),
}
_QWEN_ROUTER: Table = {
    **FFN_NORM,
    **router(),
    **shared("mlp.shared_expert"),
    **linear("mlp.shared_expert_gate", "shared_gate", "one", "residual"),
}
_QWEN_FFNS: Kinds = {
    "dense": {**FFN_NORM, **gated()},
    "experts": {**_QWEN_ROUTER, **single()},
    "experts in memory": {**_QWEN_ROUTER, **banked()},
}


def _qwen(mixer: Table, ffns: Kinds = _QWEN_FFNS) -> dict[str, Table]:
    """Compose the blocks of Qwen's hybrids."""
    mixers = {"full attention": _GATED_ATTENTION, "linear attention": {**ATTENTION_NORM, **mixer}}
    return product(mixers, ffns)


_QWEN3_NEXT = _qwen(
    delta(
        {
            "in_proj_qkvz": ("mixer_input", "mixer_input"),
            "in_proj_ba": ("mixer_rates", "mixer_rates"),
        }
    )
)
_DELTA = delta(
    {
        "in_proj_qkv": ("mixer_input", "mixer_channel"),
        "in_proj_z": ("mixer_gate", "mixer"),
        "in_proj_b": ("mixer_rate", "mixer_head"),
        "in_proj_a": ("mixer_forget", "mixer_head"),
    }
)

_OLMO_MIXER: Table = {
    **linear("linear_attn.q_proj", "mixer_query", "mixer_key", "residual"),
    **linear("linear_attn.k_proj", "mixer_key", "mixer_key", "residual"),
    **linear("linear_attn.v_proj", "mixer_value", "mixer", "residual"),
    **linear("linear_attn.a_proj", "mixer_forget", "mixer_head", "residual"),
    **linear("linear_attn.b_proj", "mixer_rate", "mixer_head", "residual"),
    **linear("linear_attn.g_proj", "mixer_gate", "mixer", "residual"),
    **other("linear_attn.A_log", "mixer_decay", ("mixer_head",)),
    **other("linear_attn.dt_bias", "mixer_step", ("mixer_head",)),
    **norm("linear_attn.o_norm", "mixer_inner_norm", "mixer_value_head"),
    **linear("linear_attn.o_proj", "mixer_output", "residual", "mixer"),
}


def _olmo_kinds() -> dict[str, Table]:
    """Compose OLMo Hybrid's blocks: pre-norm around linear attention, post-norm around attention.

    Checkpoints name the norms otherwise than transformers does. As it saves a model it renames the
    first norm on the way out like the FFN's norm of the other blocks.
    """
    stored, memory = convs("linear_attn", ("query_conv", "key_conv", "value_conv"))

    def mixer(convolutions: Table, before: str, between: str) -> Table:
        return {
            **norm(before, "attention_norm"),
            **_OLMO_MIXER,
            **convolutions,
            **norm(between, "ffn_norm"),
            **gated(),
        }

    def full(after: str) -> Table:
        return {
            **attention(writes=False),
            **wide_norms(),
            **norm(after, "attention_output_norm", silent=0.0),
            **gated(writes=False),
            **norm("post_feedforward_layernorm", "ffn_output_norm", silent=0.0),
        }

    return {
        "linear attention": mixer(stored, "attention_layer_norm", "feedforward_layer_norm"),
        "linear attention in memory": mixer(memory, "input_layernorm", "post_attention_layernorm"),
        "full attention": full("post_attention_layernorm"),
        "full attention, renamed": full("feedforward_layer_norm"),
    }


def _olmo_sizes(config: Config, stored: Mapping[str, tuple[int, ...]]) -> dict[Axis, int]:
    """Read how many channels each of the three stored convolutions has.

    transformers joins them as it loads. As it saves it cuts the whole into three equal ones,
    whatever the numbers of query, key and value channels.
    """
    key, value = (
        config[f"linear_num_{what}_heads"] * config[f"linear_{what}_head_dim"]
        for what in ("key", "value")
    )
    cuts: dict[Axis, int] = {"query_conv": key, "key_conv": key, "value_conv": value}
    for axis in cuts:
        for name, shape in stored.items():
            if name.endswith(f"linear_attn.{axis[0]}_conv1d.weight"):
                cuts[axis] = shape[0]
    return cuts


def _kimi_mixers() -> dict[str, Table]:
    """Compose Kimi Linear's mixers."""

    def around(name: str) -> tuple[Table, Table]:
        gate: Table = {
            **linear(f"{name}.f_a_proj", "mixer_forget_down", "mixer_rank", "residual"),
            **linear(f"{name}.f_b_proj", "mixer_forget_up", "mixer", "mixer_rank"),
            **other(f"{name}.dt_bias", "mixer_step", ("mixer",)),
            **other(f"{name}.A_log", "mixer_decay", ("one", "one", "mixer_head", "one")),
            **linear("self_attn.g_a_proj", "mixer_gate_down", "mixer_rank", "residual"),
            **linear("self_attn.g_b_proj", "mixer_gate_up", "mixer", "mixer_rank"),
        }
        output = linear("self_attn.o_proj", "mixer_output", "residual", "mixer")
        stored, memory = linear_attention("self_attn", gate)
        return {**ATTENTION_NORM, **stored, **output}, {**ATTENTION_NORM, **memory, **output}

    return {
        "linear attention": around("self_attn")[0],
        "linear attention in memory": around("self_attn.forget_gate")[1],
        "full attention": {**ATTENTION_NORM, **latent_attention(query=False)},
        "full attention, latent query": {**ATTENTION_NORM, **latent_attention(query=True)},
    }


def _kimi_ffns() -> dict[str, Table]:
    """Compose Kimi Linear's FFNs; as transformers saves them, dense ones are renamed too."""
    old, new = "block_sparse_moe", "mlp"

    def beside(name: str) -> Table:
        chooses = router(f"{name}.gate", f"{name}.gate.e_score_correction_bias")
        return {**FFN_NORM, **chooses, **shared(f"{name}.shared_experts")}

    return {
        "dense": {**FFN_NORM, **gated()},
        "dense, renamed": {**FFN_NORM, **gated(old)},
        "experts": {**beside(old), **single(f"{old}.experts", "w1", "w3", "w2")},
        "experts in memory": {**beside(new), **banked()},
    }


def _kimi_lists(config: Config, parents: Sequence[int]) -> dict[str, Any]:
    """Rewrite the lists of blocks, counted from 1, that Kimi Linear's checkpoints have."""
    nested = config.get("linear_attn_config")
    if not isinstance(nested, Mapping):
        return {}
    lists = {
        name: [index for index, parent in enumerate(parents, 1) if parent + 1 in nested[name]]
        for name in ("full_attn_layers", "kda_layers")
        if name in nested
    }
    return {"linear_attn_config": {**nested, **lists}}


def _bailing_mixers() -> dict[str, Table]:
    """Compose Bailing's mixers."""

    def linear_mixer(name: str, gate: str, output: str) -> tuple[Table, Table]:
        decays: Table = {
            **linear(f"{gate}.f_proj", "mixer_forget", "mixer", "residual"),
            **other(f"{gate}.dt_bias", "mixer_step", ("mixer",)),
            **other(f"{gate}.A_log", "mixer_decay", ("mixer_head",)),
            **linear(f"{name}.g_proj", "mixer_gate", "mixer", "residual"),
        }
        out = linear(f"{name}.{output}", "mixer_output", "residual", "mixer")
        stored, memory = linear_attention(name, decays)
        return {**ATTENTION_NORM, **stored, **out}, {**ATTENTION_NORM, **memory, **out}

    def full(name: str, output: str) -> Table:
        whole = latent_attention(name, query=False)
        bare = {tensor: spec for tensor, spec in whole.items() if ".o_proj." not in tensor}
        return {
            **ATTENTION_NORM,
            **bare,
            **linear(f"{name}.g_proj", "attention_gate", "heads", "residual"),
            **linear(f"{name}.{output}", "attention_output", "residual", "attended"),
        }

    return {
        "linear attention": linear_mixer("attention", "attention", "dense")[0],
        "linear attention in memory": linear_mixer("self_attn", "self_attn.forget_gate", "o_proj")[
            1
        ],
        "full attention": full("attention", "dense"),
        "full attention in memory": full("self_attn", "o_proj"),
    }


def _bailing_ffns() -> dict[str, Table]:
    """Compose Bailing's FFNs."""
    stored, memory = (
        {**FFN_NORM, **router(correction=f"mlp.gate.{bias}"), **shared()}
        for bias in ("expert_bias", "e_score_correction_bias")
    )
    return {
        "dense": {**FFN_NORM, **gated()},
        "experts": {**stored, **single()},
        "experts in memory": {**memory, **banked()},
    }


_GATED: dict[str, Any] = {
    "per_layer_lists": LAYER_TYPES,
    # Queries and keys are normed, what heads hand on is gated.
    "heads": heads_with(normed=True, gated=True),
    "bilinear": True,
    "norm_offset": 1.0,
    "carried": _MTP,
}

FAMILIES = (
    Family(
        "qwen3_next",
        _QWEN3_NEXT,
        index_lists=("mlp_only_layers",),
        explicit=dense_listed,
        **_GATED,
    ),
    Family("qwen3_5_text", _qwen(_DELTA, {"": _QWEN_FFNS["dense"]}), **_GATED),
    Family("qwen3_5_moe_text", _qwen(_DELTA), **_GATED),
    Family(
        "olmo_hybrid",
        _olmo_kinds(),
        per_layer_lists=LAYER_TYPES,
        sizes=_olmo_sizes,
        carried=_MTP,
        heads=normed_heads,
        bilinear=True,
    ),
    Family(
        "kimi_linear",
        product(_kimi_mixers(), _kimi_ffns()),
        per_layer_lists=BOTH_TYPES,
        prefix_counts=DENSE_FIRST,
        rewrite=_kimi_lists,
        sizes=expert_groups,
        heads=no_heads,
        bilinear=True,
    ),
    Family(
        "bailing_hybrid",
        product(_bailing_mixers(), _bailing_ffns()),
        stored_as={"model.embed_tokens.weight": "model.word_embeddings.weight"},
        per_layer_lists=BOTH_TYPES,
        prefix_counts=DENSE_FIRST,
        trailing_field="num_nextn_predict_layers",
        sizes=expert_groups,
        heads=no_heads,
        bilinear=True,
    ),
)
