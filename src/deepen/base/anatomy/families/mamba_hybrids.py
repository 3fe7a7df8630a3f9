"""Hybrids of attention and Mamba, in blocks of their own or side by side.

Kinds of block are composed: one kind for each token mixer, FFN and layout that go together.
"""

from deepen.base.anatomy.experts import banked, expert_groups, router, single
from deepen.base.anatomy.family import Config, Family, Heads
from deepen.base.anatomy.mixers import mamba, mamba2, product
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    FFN_NORM,
    attention,
    bank,
    fused_gated,
    gated,
    linear,
    norm,
    rope_heads,
    unrotated_heads,
)
from deepen.base.anatomy.tensors import Kinds, Table
from deepen.base.anatomy.vocabulary import Axis

_FINAL_NORM = ("model.final_layernorm.weight",)


def _granite_heads(config: Config) -> Heads | None:
    """Read Granite's heads: RoPE is a choice of the config."""
    rope = config.get("position_embedding_type") == "rope"
    return rope_heads(config) if rope else unrotated_heads(config)


_PRE_FFN_NORM = norm("pre_ff_layernorm", "ffn_norm")
_FEED_FORWARD: Table = {**_PRE_FFN_NORM, **gated("feed_forward")}

_JAMBA_MIXERS: Kinds = {
    "attention": {**ATTENTION_NORM, **attention()},
    "mamba": {
        **ATTENTION_NORM,
        **mamba("mamba"),
        **norm("mamba.dt_layernorm", "mixer_step_norm", "mixer_step"),
        **norm("mamba.b_layernorm", "mixer_in_norm", "state"),
        **norm("mamba.c_layernorm", "mixer_out_norm", "state"),
    },
}
_JAMBA_ROUTER: Table = {**_PRE_FFN_NORM, **router("feed_forward.router")}
_JAMBA_FFNS: Kinds = {
    "dense": _FEED_FORWARD,
    "experts": {**_JAMBA_ROUTER, **single("feed_forward.experts")},
    "experts in memory": {**_JAMBA_ROUTER, **banked("feed_forward.experts")},
}


def _jamba_pattern(config: Config) -> list[object]:
    """Say which blocks have attention, and which have experts: the config has periods for both."""
    attends = config["attn_layer_period"], config["attn_layer_offset"]
    mixes = config["expert_layer_period"], config["expert_layer_offset"]
    return [
        tuple(index % period == offset for period, offset in (attends, mixes))
        for index in range(config["num_hidden_layers"])
    ]


_BAMBA_MIXERS: Kinds = {
    "attention": {**ATTENTION_NORM, **attention()},
    "mamba": {**ATTENTION_NORM, **mamba2("mamba")},
}


def _granite_ffns() -> dict[str, Table]:
    """Compose Granite's FFNs: one that all tokens pass, alone or beside experts."""

    def always(unit: str, axis: Axis) -> Table:
        return fused_gated("shared_mlp", "input_linear", "output_linear", axis=axis, unit=unit)

    experts = {
        "experts": {
            **router("block_sparse_moe.router.layer"),
            **banked(
                "block_sparse_moe", gate_up="input_linear.weight", down="output_linear.weight"
            ),
        },
        "experts in memory": {
            **router("block_sparse_moe.router"),
            **banked("block_sparse_moe.experts"),
        },
    }
    beside = always("shared", "shared_ffn")
    mixed = {kind: {**FFN_NORM, **table, **beside} for kind, table in experts.items()}
    return {"dense": {**FFN_NORM, **always("", "ffn")}, **mixed}


_FALCON_H1: dict[str, Table] = {
    kind: {**ATTENTION_NORM, **mamba2("mamba", normed=normed), **attention(), **_FEED_FORWARD}
    for kind, normed in (("normed mixer", True), ("block", False))
}

# One mixer or one FFN per block.


def _nemotron_experts(latent: bool) -> dict[str, Table]:
    """Compose Nemotron-H's experts, which have no gate and may live in a narrower space."""
    width: Axis = "latent" if latent else "residual"
    around: Table = {
        **norm("norm", "ffn_norm"),
        **router("mixer.gate", "mixer.gate.e_score_correction_bias"),
        **linear("mixer.shared_experts.up_proj", "up", "shared_ffn", "residual", unit="shared"),
        **linear(
            "mixer.shared_experts.down_proj", "ffn_output", "residual", "shared_ffn", unit="shared"
        ),
    }
    if latent:
        around = {
            **around,
            **linear("mixer.fc1_latent_proj", "latent_down", "latent", "residual"),
            **linear("mixer.fc2_latent_proj", "latent_up", "residual", "latent"),
        }
    name, unit = "mixer.experts", "*"
    kind = "latent experts" if latent else "experts"
    return {
        kind: {
            **around,
            **linear(f"{name}.*.up_proj", "up", "expert_ffn", width, unit=unit),
            **linear(f"{name}.*.down_proj", "ffn_output", width, "expert_ffn", unit=unit),
        },
        f"{kind} in memory": {
            **around,
            **bank(f"{name}.up_proj", {"up": ("expert_ffn", width)}),
            **bank(f"{name}.down_proj", {"ffn_output": (width, "expert_ffn")}),
        },
    }


_NEMOTRON_H: dict[str, Table] = {
    "mamba": {**norm("norm", "mixer_norm"), **mamba2("mixer")},
    "attention": {**norm("norm", "attention_norm"), **attention("mixer")},
    "dense": {
        **norm("norm", "ffn_norm"),
        **linear("mixer.up_proj", "up", "ffn", "residual"),
        **linear("mixer.down_proj", "ffn_output", "residual", "ffn"),
    },
    **_nemotron_experts(latent=False),
    **_nemotron_experts(latent=True),
}

FAMILIES = (
    Family(
        "jamba",
        product(_JAMBA_MIXERS, _JAMBA_FFNS),
        final_norm=_FINAL_NORM,
        pattern=_jamba_pattern,
        heads=unrotated_heads,
        bilinear=True,
    ),
    Family(
        "bamba",
        product(_BAMBA_MIXERS, {"": _FEED_FORWARD}),
        final_norm=_FINAL_NORM,
        index_lists=("attn_layer_indices",),
        heads=rope_heads,
        bilinear=True,
    ),
    Family(
        "granitemoehybrid",
        product(_BAMBA_MIXERS, _granite_ffns()),
        per_layer_lists=("layer_types", "layers_block_type"),
        heads=_granite_heads,
        bilinear=True,
    ),
    Family("falcon_h1", _FALCON_H1, final_norm=_FINAL_NORM, heads=rope_heads, bilinear=True),
    Family(
        "nemotron_h",
        _NEMOTRON_H,
        embeddings="model.embeddings.weight",
        final_norm=("model.norm_f.weight",),
        stored_as={
            f"model.{name}": f"backbone.{name}"
            for name in ("embeddings.weight", "norm_f.weight", "layers.")
        },
        per_layer_lists=("layers_block_type", "hybrid_override_pattern"),
        sizes=expert_groups,
        carried=("mtp.",),
        heads=unrotated_heads,
    ),
)
