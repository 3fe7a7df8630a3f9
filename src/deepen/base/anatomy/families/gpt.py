"""GPT-style families: LayerNorms with biases, plain FFNs of two matrices, fused projections."""

from dataclasses import replace
from typing import Any

from deepen.base.anatomy.families.refused import CROSS_ATTENTION
from deepen.base.anatomy.family import Config, Family, Heads, Refusal
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    FFN_NORM,
    QUERY_KEY_VALUE,
    affine,
    attention,
    buffers,
    clipped,
    fused,
    linear,
    megatron,
    norm,
    optional,
    plain,
    plain_heads,
    rope_heads,
)
from deepen.base.anatomy.tensors import Split, Table

_gpt2_heads = plain_heads("n_head", "n_embd")


def _bigcode_heads(config: Config) -> Heads:
    """Read heads that all share one key, or none."""
    heads = _gpt2_heads(config)
    return replace(heads, key_value=1) if config["multi_query"] else heads


def _gptj_heads(config: Config) -> Heads:
    """Read heads whose first dimensions are turned in adjacent pairs."""
    return replace(_gpt2_heads(config), rotary=config["rotary_dim"], planes="adjacent")


def _falcon_heads(config: Config) -> Heads:
    """Read Falcon's heads: grouped in the new architecture, else with one key or with one each."""
    heads, alibi = config["num_attention_heads"], bool(config["alibi"])
    size = config["hidden_size"] // heads
    key_value = 1 if config["multi_query"] else heads
    if config["new_decoder_architecture"]:
        key_value = config["num_kv_heads"]
    rotary = 0 if alibi else size
    return Heads(
        heads, key_value, size, size, rotary=rotary, normed=False, fixed=alibi, gated=False
    )


def _gpt2_block(*, transposed: bool, split: Split) -> Table:
    """Describe a block of GPT-2 or GPT-BigCode."""
    return {
        **norm("ln_1", "attention_norm"),
        **fused("attn.c_attn", QUERY_KEY_VALUE, split=split, transposed=transposed),
        **linear("attn.c_proj", "attention_output", "residual", "attended", transposed=transposed),
        **norm("ln_2", "ffn_norm"),
        **plain("mlp.c_fc", "mlp.c_proj", transposed=transposed),
        **_masks("attn"),
    }


def _masks(name: str) -> Table:
    """Describe the causal masks that older checkpoints store with every attention."""
    return buffers(*(f"{name}.{mask}" for mask in ("bias", "masked_bias", "causal_mask")))


_GPT2 = Family(
    "gpt2",
    {"block": _gpt2_block(transposed=True, split="rows")},
    embeddings="transformer.wte.weight",
    outside=("transformer.wpe.weight",),
    final_norm=affine("transformer.ln_f"),
    block_prefix="transformer.h.",
    depth_field="n_layer",
    heads=_gpt2_heads,
    refusals=(
        Refusal(
            lambda config: bool(config.get("scale_attn_by_inverse_layer_idx")),
            "every block divides its attention by its own number "
            "(scale_attn_by_inverse_layer_idx), so that blocks cannot move",
        ),
        CROSS_ATTENTION,
    ),
)

# With one key for all heads this layout, too, is that of groups of heads: of a single one.
_GPT_BIGCODE = replace(
    _GPT2,
    model_type="gpt_bigcode",
    kinds={"block": _gpt2_block(transposed=False, split="heads")},
    heads=_bigcode_heads,
    refusals=(CROSS_ATTENTION,),
)


def _attention_types(config: Config) -> dict[str, Any]:
    """Write GPT-Neo's run-length coded pattern out: [[["global", "local"], 3]] to six entries."""
    return {"attention_types": [[[kind], 1] for kind in config["attention_layers"]]}


_GPT_NEO = replace(
    _GPT2,
    model_type="gpt_neo",
    kinds={
        "block": {
            **norm("ln_1", "attention_norm"),
            **attention("attn.attention", output="out_proj"),
            **norm("ln_2", "ffn_norm"),
            **plain("mlp.c_fc", "mlp.c_proj"),
            **_masks("attn.attention"),
        }
    },
    depth_field="num_layers",
    heads=plain_heads("num_heads", "hidden_size"),
    per_layer_lists=("attention_layers", "attention_types"),
    explicit=_attention_types,
    refusals=(),
)

_GPTJ_BEFORE, _GPTJ_AFTER = (
    norm("ln_1", "attention_norm"),
    {**plain("mlp.fc_in", "mlp.fc_out"), **_masks("attn")},
)
_GPTJ = replace(
    _GPT2,
    model_type="gptj",
    kinds={"block": {**_GPTJ_BEFORE, **attention("attn", output="out_proj"), **_GPTJ_AFTER}},
    outside=(),
    optional_outside=("lm_head.bias",),
    heads=_gptj_heads,
    refusals=(),
)

# Split for the four cores of a TPU: a quarter of the heads after the other, values before keys.
_CODEGEN = replace(
    _GPTJ,
    model_type="codegen",
    kinds={
        "block": {
            **_GPTJ_BEFORE,
            **fused(
                "attn.qkv_proj",
                {"query": "query", "value": "value", "key": "key_value"},
                split="quarters",
            ),
            **linear("attn.out_proj", "attention_output", "residual", "attended"),
            **_GPTJ_AFTER,
        }
    },
)

_GPT_NEOX = Family(
    "gpt_neox",
    {"block": {**megatron("attention"), **_masks("attention")}},
    embeddings="gpt_neox.embed_in.weight",
    final_norm=affine("gpt_neox.final_layer_norm"),
    stored_as={"lm_head.weight": "embed_out.weight"},
    block_prefix="gpt_neox.layers.",
    heads=rope_heads,
)

_FALCON = Family(
    "falcon",
    {
        "block": megatron(
            "self_attention",
            norms=optional(
                {
                    **ATTENTION_NORM,
                    **FFN_NORM,
                    **norm("ln_attn", "attention_norm"),
                    **norm("ln_mlp", "ffn_norm"),
                }
            ),
        )
    },
    embeddings="transformer.word_embeddings.weight",
    final_norm=affine("transformer.ln_f"),
    block_prefix="transformer.h.",
    heads=_falcon_heads,
)

_BLOOM = replace(
    _FALCON,
    model_type="bloom",
    kinds={"block": megatron("self_attention")},
    outside=affine("transformer.word_embeddings_layernorm"),
    depth_field="n_layer",
    heads=plain_heads("n_head", "hidden_size", fixed=True),
    refusals=(
        Refusal(
            lambda config: bool(config.get("apply_residual_connection_post_layernorm")),
            "its blocks norm the residual stream itself "
            "(apply_residual_connection_post_layernorm), so that no added block can leave it as "
            "it is",
        ),
    ),
)

_MPT = Family(
    "mpt",
    {
        "block": {
            **norm("norm_1", "attention_norm"),
            **fused("attn.Wqkv", QUERY_KEY_VALUE),
            **linear("attn.out_proj", "attention_output", "residual", "attended"),
            **norm("norm_2", "ffn_norm"),
            **plain("ffn.up_proj", "ffn.down_proj"),
        }
    },
    embeddings="transformer.wte.weight",
    final_norm=("transformer.norm_f.weight",),
    block_prefix="transformer.blocks.",
    depth_field="n_layers",
    heads=clipped(plain_heads("n_heads", "d_model", fixed=True)),
)

_CTRL = replace(
    _GPT2,
    model_type="ctrl",
    kinds={
        "block": {
            **norm("layernorm1", "attention_norm"),
            **linear("multi_head_attention.Wq", "query", "query", "residual"),
            **linear("multi_head_attention.Wk", "key", "key_value", "residual"),
            **linear("multi_head_attention.Wv", "value", "value", "residual"),
            **linear("multi_head_attention.dense", "attention_output", "residual", "attended"),
            **norm("layernorm2", "ffn_norm"),
            **plain("ffn.0", "ffn.2"),
        }
    },
    embeddings="transformer.w.weight",
    outside=(),
    final_norm=affine("transformer.layernorm"),
    optional_outside=("lm_head.bias",),
    refusals=(),
)

FAMILIES = (
    _GPT2,
    replace(_GPT2, model_type="gpt-sw3"),
    _GPT_BIGCODE,
    _GPT_NEO,
    _GPTJ,
    _CODEGEN,
    _GPT_NEOX,
    _FALCON,
    _BLOOM,
    _MPT,
    _CTRL,
)
