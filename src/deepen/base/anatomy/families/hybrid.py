"""Hybrids: families in which only some blocks have attention, or all have something beside it.

Those with Mamba stand here. Kinds of block are composed: one kind for each token mixer, FFN and
layout that go together.
"""

from dataclasses import replace

from deepen.base.anatomy.families import convolution, indexed, recurrent
from deepen.base.anatomy.families import linear as linear_hybrids
from deepen.base.anatomy.families.linear import MTP
from deepen.base.anatomy.families.llama import ATTENTION_NORM, FFN_NORM, attention, gated
from deepen.base.anatomy.families.mixers import Kinds, mamba, mamba2, product
from deepen.base.anatomy.families.mixtures import banked, expert_groups, router, single
from deepen.base.anatomy.family import Config, Family, Heads, rope_heads
from deepen.base.anatomy.tensors import Table, bank, fused, linear, norm

_FINAL_NORM = ("model.final_layernorm.weight",)


def _unrotated(config: Config) -> Heads | None:
    """Read the heads of families without position embeddings."""
    heads = rope_heads(config)
    return heads and replace(heads, rotary=0)


def _granite_heads(config: Config) -> Heads | None:
    """Read Granite's heads: RoPE is a choice of the config."""
    rope = config.get("position_embedding_type") == "rope"
    return rope_heads(config) if rope else _unrotated(config)


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

    def always(unit: str, axis: str) -> Table:
        return {
            **fused("shared_mlp.input_linear", {"gate": axis, "up": axis}, unit=unit),
            **linear("shared_mlp.output_linear", "ffn_output", "residual", axis, unit=unit),
        }

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
_NEMOTRON_LATENT = {"up": ("expert_ffn", "latent")}, {"ffn_output": ("latent", "expert_ffn")}
_NEMOTRON_PLAIN = {"up": ("expert_ffn", "residual")}, {"ffn_output": ("residual", "expert_ffn")}


def _nemotron_experts(latent: bool) -> dict[str, Table]:
    """Compose Nemotron-H's experts, which have no gate and may live in a narrower space."""
    width = "latent" if latent else "residual"
    up, down = _NEMOTRON_LATENT if latent else _NEMOTRON_PLAIN
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
            **bank(f"{name}.up_proj", up),
            **bank(f"{name}.down_proj", down),
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
        heads=_unrotated,
    ),
    Family(
        "bamba",
        product(_BAMBA_MIXERS, {"": _FEED_FORWARD}),
        final_norm=_FINAL_NORM,
        index_lists=("attn_layer_indices",),
    ),
    Family(
        "granitemoehybrid",
        product(_BAMBA_MIXERS, _granite_ffns()),
        per_layer_lists=("layer_types", "layers_block_type"),
        heads=_granite_heads,
    ),
    Family("falcon_h1", _FALCON_H1, final_norm=_FINAL_NORM),
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
        carried=MTP,
        heads=_unrotated,
    ),
    *indexed.FAMILIES,
    *linear_hybrids.FAMILIES,
    *convolution.FAMILIES,
    *recurrent.FAMILIES,
)

_SHARED_BLOCKS = "all of its attention blocks are one and the same, so that none can be added"
_MIXED_STREAMS = (
    "its blocks mix several residual streams by a matrix that is never the identity, so that no "
    "new block can leave them as they are"
)
_VISION = "it is a vision-language model; give deepen its text model as a checkpoint of its own"

REFUSED: dict[str, str] = {
    "zamba": _SHARED_BLOCKS,
    "zamba2": _SHARED_BLOCKS,
    "qwen4_exp_text": (
        "its n-gram embeddings are hashed by how many blocks below have some, and a new block "
        "could change that"
    ),
    "deepseek_v4": _MIXED_STREAMS,
    "qwen3_5": _VISION,
    "qwen3_5_moe": _VISION,
    "qwen4_exp": _VISION,
    "dots3_note": _VISION,
    "inkling2_text": (
        "every n-th of its blocks by index starts a new sum of the blocks below, and a new block "
        "would move the starts"
    ),
    **recurrent.REFUSED,
}
