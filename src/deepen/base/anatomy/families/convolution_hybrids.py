"""Hybrids with short convolutions, in place of attention (LFM) or around it (Zaya, Inkling)."""

from collections.abc import Mapping
from typing import Any

from deepen.base.anatomy.experts import BOTH_TYPES, banked, router, single
from deepen.base.anatomy.family import Config, Family
from deepen.base.anatomy.mixers import conv, first_differs, product, short_conv
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    FFN_NORM,
    LAYER_TYPES,
    attention,
    gated,
    linear,
    no_heads,
    norm,
    normed_heads,
    other,
    query_key_norms,
)
from deepen.base.anatomy.tensors import Kinds, StoredSpec, Table, TensorSpec
from deepen.base.anatomy.vocabulary import Axis, Role

_OPERATOR_NORM = norm("operator_norm", "attention_norm")
_LFM_FFN_NORM = norm("ffn_norm", "ffn_norm")


def _lfm_ffn(*, writes: bool = True) -> Table:
    """Describe LFM's FFN."""
    return {
        **_LFM_FFN_NORM,
        **linear("feed_forward.w1", "gate", "ffn", "residual"),
        **linear("feed_forward.w3", "up", "ffn", "residual"),
        **linear("feed_forward.w2", "ffn_output", "residual", "ffn", writes=writes),
    }


_LFM2_MIXERS: Kinds = {
    "attention": {
        **_OPERATOR_NORM,
        **attention(output="out_proj"),
        **query_key_norms(query="q_layernorm", key="k_layernorm"),
    },
    "convolution": {**_OPERATOR_NORM, **short_conv()},
}
_LFM2_ROUTER: Table = {
    **_LFM_FFN_NORM,
    **router("feed_forward.gate"),
    **other("feed_forward.expert_bias", "router_correction", ("expert",), optional=True),
}
_LFM2_MOE_FFNS: Kinds = {
    "dense": _lfm_ffn(),
    "experts": {**_LFM2_ROUTER, **single("feed_forward.experts", "w1", "w3", "w2")},
    "experts in memory": {**_LFM2_ROUTER, **banked("feed_forward.experts")},
}


def _lfm3(*, sandwich: bool) -> dict[str, Table]:
    """Compose LFM3's blocks, which may have norms on the way out."""
    writes = not sandwich
    after = norm("post_operator_norm", "attention_output_norm", silent=0.0)
    last = norm("post_ffn_norm", "ffn_output_norm", silent=0.0)
    # Some configs switch the gate off; checkpoints call it otherwise than transformers does.
    gate: Table = {
        tensor: spec
        for name in ("g_proj", "gate_proj")
        for tensor, spec in other(
            f"self_attn.{name}.weight", "attention_gate", ("heads", "residual"), optional=True
        ).items()
    }
    mixers: Kinds = {
        "attention": {**attention(writes=writes), **query_key_norms(), **gate},
        "convolution": short_conv(writes=writes),
    }
    return {
        kind + (", normed" if sandwich else ""): {
            **_OPERATOR_NORM,
            **mixer,
            **(after if sandwich else {}),
            **_lfm_ffn(writes=writes),
            **(last if sandwich else {}),
        }
        for kind, mixer in mixers.items()
    }


def _scaled(name: str, scale: Role, shift: Role, stream_scale: Role, stream_shift: Role) -> Table:
    """Describe how a sum of the residual stream and a block's output scales and shifts both."""
    return {
        **other(f"{name}.hidden_states_scale", scale, ("residual",)),
        **other(f"{name}.hidden_states_bias", shift, ("residual",), silent=0.0),
        **other(f"{name}.residual_scale", stream_scale, ("residual",), silent=1.0),
        **other(f"{name}.residual_bias", stream_shift, ("residual",), silent=0.0),
    }


_ATTENTION_SUM = _scaled(
    "post_attention_residual_scale",
    "attention_scale",
    "attention_shift",
    "attention_residual_scale",
    "attention_residual_shift",
)
_FFN_SUM = _scaled(
    "post_mlp_residual_scale", "ffn_scale", "ffn_shift", "ffn_residual_scale", "ffn_residual_shift"
)


def _zaya(*, first: bool) -> Table:
    """Describe Zaya's blocks.

    Each block's router hands its hidden state on to the next one's, as the residual stream is
    handed on: a silent block adds nothing to it and passes it on at scale 1. The first block gets
    none and has no scale.
    """
    projection, gate = "self_attn.qkv_proj", "mlp.gate"
    skipping = StoredSpec(
        (
            TensorSpec("router", ("expert", "router")),
            TensorSpec("router_skip", ("one", "router")),
        ),
        "rows",
    )
    correction = StoredSpec(
        (
            TensorSpec("router_correction", ("expert",)),
            TensorSpec("router_skip_correction", ("one",)),
        ),
        "rows",
    )
    handed_on = other(f"{gate}.router_states_scale", "router_stream_scale", ("router",), silent=1.0)
    return {
        **ATTENTION_NORM,
        **linear(f"{projection}.q_proj", "mixed_query", "query", "residual"),
        **linear(f"{projection}.k_proj", "mixed_key", "key_value", "residual"),
        **linear(f"{projection}.v_proj_current", "current_value", "half_value", "residual"),
        **linear(f"{projection}.v_proj_delayed", "delayed_value", "half_value", "residual"),
        **conv(f"{projection}.conv_qk_depthwise", "query_key_conv", "query_key"),
        **other(
            f"{projection}.conv_qk_grouped.weight",
            "query_key_mix",
            ("query_key", "head", "mix_width"),
        ),
        **other(f"{projection}.conv_qk_grouped.bias", "query_key_mix_bias", ("query_key",)),
        **other("self_attn.qk_norm.temp", "key_temperature", ("kv_heads",)),
        **linear("self_attn.o_proj", "attention_output", "residual", "attended"),
        **_ATTENTION_SUM,
        **FFN_NORM,
        **linear(f"{gate}.down_proj", "router_down", "router", "residual", writes=True),
        **({} if first else handed_on),
        **norm(f"{gate}.router_mlp.norm", "router_norm", "router"),
        **linear(f"{gate}.router_mlp.fc1", "router_hidden", "router", "router"),
        **linear(f"{gate}.router_mlp.fc2", "router_hidden_2", "router", "router"),
        f"{gate}.router_mlp.out_proj.weight": skipping,
        f"{gate}.balancing_biases": correction,
        **banked(),
        **_FFN_SUM,
    }


def _zaya_sizes(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[Axis, int]:
    """Read how many of the router's rows are experts; one more skips them all."""
    return {"expert": config["num_experts"], "one": 1}


def _inkling(ffn: Table) -> Table:
    """Describe Inkling's blocks: what leaves attention and FFN is convolved, nothing else added."""
    relative = "self_attn.rel_logits_proj.proj"
    return {
        **ATTENTION_NORM,
        **attention(),
        **linear("self_attn.r_proj", "relative", "relative_heads", "residual"),
        **conv("self_attn.k_sconv.conv1d", "key_conv", "key_channels"),
        **conv("self_attn.v_sconv.conv1d", "value_conv", "value_channels"),
        **query_key_norms(),
        **other(relative, "relative_logits", ("relative_rank", "relative_extent")),
        **conv("attn_sconv.conv1d", "attention_output_conv", "residual"),
        **FFN_NORM,
        **ffn,
        **conv("mlp_sconv.conv1d", "ffn_output_conv", "residual"),
    }


_INKLING_ROUTER = StoredSpec(
    (
        TensorSpec("router", ("expert", "residual")),
        TensorSpec("shared_router", ("shared_expert", "residual")),
    ),
    "rows",
)
_SHARED_IN: tuple[Axis, ...] = ("shared_expert", "shared_ffn", "residual")
_SHARED_OUT: tuple[Axis, ...] = ("shared_expert", "residual", "shared_ffn")
_INKLING: Kinds = {
    "dense": _inkling({**gated(), **other("mlp.global_scale", "ffn_scale", ("one",))}),
    "experts": _inkling(
        {
            "mlp.gate.weight": _INKLING_ROUTER,
            **other("mlp.gate.global_scale", "ffn_scale", ("one",)),
            **other("mlp.gate.e_score_correction_bias", "router_correction", ("expert",)),
            **banked(),
            **other("mlp.shared_experts.gate_proj", "shared_gate", _SHARED_IN),
            **other("mlp.shared_experts.up_proj", "shared_up", _SHARED_IN),
            **other("mlp.shared_experts.down_proj", "shared_output", _SHARED_OUT, silent=0.0),
        }
    ),
}
_INKLING_AXES: frozenset[Axis] = frozenset(
    {
        "query",
        "key_value",
        "value",
        "attended",
        "head",
        "relative_heads",
        "relative_extent",
        "key_channels",
        "value_channels",
    }
)


def _inkling_sizes(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[Axis, int]:
    """Read how many of the router's rows are experts, and how many shared experts."""
    return {"expert": config["n_routed_experts"], "shared_expert": config["n_shared_experts"]}


_LFM: dict[str, Any] = {
    "final_norm": ("model.embedding_norm.weight",),
    "per_layer_lists": LAYER_TYPES,
    "heads": normed_heads,
    "bilinear": True,
}

FAMILIES = (
    Family(
        "lfm2", product(_LFM2_MIXERS, {"": _lfm_ffn()}), index_lists=("full_attn_idxs",), **_LFM
    ),
    Family(
        "lfm2_moe",
        product(_LFM2_MIXERS, _LFM2_MOE_FFNS),
        prefix_counts=("num_dense_layers",),
        **_LFM,
    ),
    Family("lfm3", {**_lfm3(sandwich=True), **_lfm3(sandwich=False)}, **_LFM),
    Family(
        "zaya",
        {"first": _zaya(first=True), "block": _zaya(first=False)},
        outside=("model.input_hidden_states_scale", "model.input_hidden_states_bias"),
        optional_outside=("lm_head.bias",),
        per_layer_lists=LAYER_TYPES,
        pattern=first_differs,
        sizes=_zaya_sizes,
        heads=no_heads,
        bilinear=True,
    ),
    Family(
        "inkling_text",
        _INKLING,
        outside=("model.embed_tokens.embed_norm.weight",),
        per_layer_lists=BOTH_TYPES,
        index_lists=("local_layer_ids",),
        sizes=_inkling_sizes,
        varying=_INKLING_AXES,
        carried=("model.mtp.",),
        heads=no_heads,
        bilinear=True,
    ),
)
