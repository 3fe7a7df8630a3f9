"""GPT-style families: LayerNorms with biases, plain FFNs of two matrices, fused projections."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deepen.base.anatomy.families.llama import ATTENTION_NORM, FFN_NORM, attention
from deepen.base.anatomy.family import Config, Family, Heads, Refusal
from deepen.base.anatomy.tensors import Split, Table, buffers, fused, linear, norm

_QUERY_KEY_VALUE = {"query": "query", "key": "key_value", "value": "value"}
POST_LN = (
    "its blocks norm the residual stream itself (post-LN), so that no added block can leave it "
    "as it is"
)
"""Why blocks with a norm behind every residual addition are refused."""
CROSS_ATTENTION = Refusal(
    lambda config: bool(config.get("add_cross_attention")),
    "its blocks attend to an encoder (add_cross_attention); deepen grows decoders alone",
)
"""Refuses decoders that attend to an encoder, too."""


def plain_ffn(up: str, down: str, *, transposed: bool = False) -> Table:
    """Describe an FFN of two matrices without a gate."""
    return {
        **linear(up, "up", "ffn", "residual", transposed=transposed),
        **linear(down, "ffn_output", "residual", "ffn", transposed=transposed),
    }


def optional(table: Table) -> Table:
    """Describe tensors that some models of a family have and others lack, in all their blocks."""
    return {name: replace(spec, optional=True) for name, spec in table.items()}


def plain_heads(heads: str, width: str, **how: Any) -> Callable[[Config], Heads]:
    """Return a reader of heads that share no keys.

    Args:
        heads: The config field that counts them.
        width: The config field of the hidden size.
        **how: What else a ``Heads`` has.
    """

    def read(config: Config) -> Heads:
        size = config[width] // config[heads]
        return Heads(config[heads], config[heads], size, size, **how)

    return read


_gpt2_heads = plain_heads("n_head", "n_embd")


def _bigcode_heads(config: Config) -> Heads:
    """Read heads that all share one key, or none."""
    heads = _gpt2_heads(config)
    return replace(heads, key_value=1) if config["multi_query"] else heads


def _gptj_heads(config: Config) -> Heads:
    """Read heads whose first dimensions are turned in adjacent pairs."""
    return replace(_gpt2_heads(config), rotary=config["rotary_dim"], pairing="adjacent")


def _falcon_heads(config: Config) -> Heads:
    """Read Falcon's heads: grouped in the new architecture, else with one key or with one each."""
    heads, alibi = config["num_attention_heads"], bool(config["alibi"])
    size = config["hidden_size"] // heads
    key_value = 1 if config["multi_query"] else heads
    if config["new_decoder_architecture"]:
        key_value = config["num_kv_heads"]
    return Heads(heads, key_value, size, size, rotary=0 if alibi else size, fixed=alibi)


def megatron(name: str, *, norms: Table | None = None, inner: Table | None = None) -> Table:
    """Describe a block with the names of Megatron-LM: GPT-NeoX, Falcon, BLOOM, Persimmon.

    Args:
        name: Name of the attention.
        norms: The norms on the way in; by default one each for attention and FFN.
        inner: The norms of queries and keys, if it has them.
    """
    return {
        **({**ATTENTION_NORM, **FFN_NORM} if norms is None else norms),
        **fused(f"{name}.query_key_value", _QUERY_KEY_VALUE, split="heads"),
        **(inner or {}),
        **linear(f"{name}.dense", "attention_output", "residual", "attended"),
        **plain_ffn("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        **buffers(f"{name}.rotary_emb.inv_freq"),
    }


def _gpt2_block(*, transposed: bool, split: Split) -> Table:
    """Describe a block of GPT-2 or GPT-BigCode."""
    out = ("attention_output", "residual", "attended")
    return {
        **norm("ln_1", "attention_norm"),
        **fused("attn.c_attn", _QUERY_KEY_VALUE, split=split, transposed=transposed),
        **linear("attn.c_proj", *out, transposed=transposed),
        **norm("ln_2", "ffn_norm"),
        **plain_ffn("mlp.c_fc", "mlp.c_proj", transposed=transposed),
        **_masks("attn"),
    }


def _masks(name: str) -> Table:
    """Describe the causal masks that older checkpoints store with every attention."""
    return buffers(*(f"{name}.{mask}" for mask in ("bias", "masked_bias", "causal_mask")))


def affine(*names: str) -> tuple[str, ...]:
    """Return the tensors of LayerNorms outside all blocks."""
    return tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))


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
            **plain_ffn("mlp.c_fc", "mlp.c_proj"),
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
    {**plain_ffn("mlp.fc_in", "mlp.fc_out"), **_masks("attn")},
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
            **fused("attn.Wqkv", _QUERY_KEY_VALUE),
            **linear("attn.out_proj", "attention_output", "residual", "attended"),
            **norm("norm_2", "ffn_norm"),
            **plain_ffn("ffn.up_proj", "ffn.down_proj"),
        }
    },
    embeddings="transformer.wte.weight",
    final_norm=("transformer.norm_f.weight",),
    block_prefix="transformer.blocks.",
    depth_field="n_layers",
    heads=plain_heads("n_heads", "d_model", fixed=True),
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
            **plain_ffn("ffn.0", "ffn.2"),
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

REFUSED: dict[str, str] = {
    "openai-gpt": POST_LN,
    "gpt_neox_japanese": "only its last block has an attention bias (dense_bias), which "
    "transformers places by the block's index",
}
