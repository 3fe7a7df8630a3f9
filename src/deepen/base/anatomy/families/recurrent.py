"""Families without attention, or with a recurrence in its place in most blocks."""

from deepen.base.anatomy.family import Config, Family, Refusal
from deepen.base.anatomy.mixers import conv, first_differs, mamba, mamba2
from deepen.base.anatomy.parts import attention, gated, linear, no_heads, norm, other, rope_heads
from deepen.base.anatomy.tensors import Table
from deepen.base.anatomy.vocabulary import Axis

_MAMBA: Table = {**norm("norm", "mixer_norm"), **mamba("mixer")}
_MAMBA2: Table = {**norm("norm", "mixer_norm"), **mamba2("mixer")}

_GRIFFIN_FFN: Table = {**norm("channel_pre_norm", "ffn_norm"), **gated("mlp_block")}
_RG_LRU = "temporal_block.rg_lru"
_GATE_WEIGHT: tuple[Axis, ...] = ("mixer_head", "mixer_head_in", "mixer_head_out")
_GATE_BIAS: tuple[Axis, ...] = ("mixer_head", "mixer_head_out")
_GRIFFIN: dict[str, Table] = {
    "attention": {
        **norm("temporal_pre_norm", "attention_norm"),
        **attention("temporal_block"),
        **_GRIFFIN_FFN,
    },
    "recurrent": {
        **norm("temporal_pre_norm", "attention_norm"),
        **linear("temporal_block.linear_y", "mixer_gate", "mixer", "residual"),
        **linear("temporal_block.linear_x", "mixer_input", "mixer", "residual"),
        **conv("temporal_block.conv_1d", "mixer_conv", "mixer"),
        **other(f"{_RG_LRU}.recurrent_param", "mixer_decay", ("mixer",)),
        **other(f"{_RG_LRU}.input_gate_weight", "mixer_input_gate_weight", _GATE_WEIGHT),
        **other(f"{_RG_LRU}.input_gate_bias", "mixer_input_gate_bias", _GATE_BIAS),
        **other(f"{_RG_LRU}.recurrent_gate_weight", "mixer_recurrent_gate_weight", _GATE_WEIGHT),
        **other(f"{_RG_LRU}.recurrent_gate_bias", "mixer_recurrent_gate_bias", _GATE_BIAS),
        **linear("temporal_block.linear_out", "mixer_output", "residual", "mixer"),
        **_GRIFFIN_FFN,
    },
}


def _repeated(config: Config) -> dict[str, list[str]]:
    """Write the period of RecurrentGemma's blocks out as a list of all of them."""
    period, depth = config["block_types"], config["num_hidden_layers"]
    return {"block_types": [period[index % len(period)] for index in range(depth)]}


def _rwkv() -> Table:
    """Describe RWKV's blocks. arXiv 2305.13048, section 3.1."""
    mixed: tuple[Axis, ...] = ("one", "one", "residual")
    return {
        **norm("ln1", "attention_norm"),
        **other("attention.time_decay", "mixer_decay", ("mixer",)),
        **other("attention.time_first", "mixer_first", ("mixer",)),
        **other("attention.time_mix_key", "mixer_key_mix", mixed),
        **other("attention.time_mix_value", "mixer_value_mix", mixed),
        **other("attention.time_mix_receptance", "mixer_receptance_mix", mixed),
        **linear("attention.key", "mixer_key", "mixer", "residual"),
        **linear("attention.value", "mixer_value", "mixer", "residual"),
        **linear("attention.receptance", "mixer_receptance", "mixer", "residual"),
        **linear("attention.output", "mixer_output", "residual", "mixer"),
        **norm("ln2", "ffn_norm"),
        **other("feed_forward.time_mix_key", "ffn_key_mix", mixed),
        **other("feed_forward.time_mix_receptance", "ffn_receptance_mix", mixed),
        **linear("feed_forward.key", "up", "ffn", "residual"),
        **linear("feed_forward.receptance", "ffn_receptance", "residual", "residual", writes=False),
        **linear("feed_forward.value", "ffn_output", "residual", "ffn"),
    }


def _xlstm() -> Table:
    """Describe xLSTM's blocks, of mLSTM alone. arXiv 2503.13427, section 2."""
    return {
        **norm("norm_mlstm", "attention_norm"),
        **linear("mlstm_layer.q", "mixer_query", "mixer_key", "residual"),
        **linear("mlstm_layer.k", "mixer_key", "mixer_key", "residual"),
        **linear("mlstm_layer.v", "mixer_value", "mixer", "residual"),
        **linear("mlstm_layer.ogate_preact", "mixer_gate", "mixer", "residual"),
        **linear("mlstm_layer.igate_preact", "mixer_rate", "mixer_head", "residual"),
        **linear("mlstm_layer.fgate_preact", "mixer_forget", "mixer_head", "residual"),
        **norm("mlstm_layer.multihead_norm", "mixer_inner_norm", "mixer"),
        **linear("mlstm_layer.out_proj", "mixer_output", "residual", "mixer"),
        **norm("norm_ffn", "ffn_norm"),
        **linear("ffn.proj_up_gate", "gate", "ffn", "residual"),
        **linear("ffn.proj_up", "up", "ffn", "residual"),
        **linear("ffn.proj_down", "ffn_output", "residual", "ffn"),
    }


def _backbone(model_type: str, block: Table) -> Family:
    """Make a family of Mamba blocks alone."""
    return Family(
        model_type,
        {"block": block},
        embeddings="backbone.embeddings.weight",
        final_norm=("backbone.norm_f.weight",),
        block_prefix="backbone.layers.",
        depth_aliases=("n_layer",),
        heads=no_heads,
    )


FAMILIES = (
    _backbone("mamba", _MAMBA),
    _backbone("falcon_mamba", _MAMBA),
    _backbone("mamba2", _MAMBA2),
    Family(
        "xlstm",
        {"block": _xlstm()},
        embeddings="backbone.embeddings.weight",
        final_norm=("backbone.out_norm.weight",),
        block_prefix="backbone.blocks.",
        depth_aliases=("num_blocks",),
        heads=no_heads,
        bilinear=True,
    ),
    Family(
        "recurrent_gemma",
        _GRIFFIN,
        final_norm=("model.final_norm.weight",),
        per_layer_lists=("block_types",),
        explicit=_repeated,
        norm_offset=1.0,
        heads=rope_heads,
        bilinear=True,
    ),
    Family(
        "rwkv",
        {"first": {**norm("pre_ln", "embedding_norm"), **_rwkv()}, "block": _rwkv()},
        embeddings="rwkv.embeddings.weight",
        final_norm=("rwkv.ln_out.weight", "rwkv.ln_out.bias"),
        head="head.weight",
        block_prefix="rwkv.blocks.",
        pattern=first_differs,
        heads=no_heads,
        refusals=(
            Refusal(
                lambda config: config["rescale_every"] > 0,
                "it halves its hidden states after every n-th block, and new blocks would move "
                "the places; set rescale_every to 0 in its config.json (only float16 needs it)",
            ),
        ),
    ),
)
