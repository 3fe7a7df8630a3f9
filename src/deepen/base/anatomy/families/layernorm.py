"""Pre-norm families laid out like Llama's, with LayerNorms and mostly with plain FFNs."""

from dataclasses import replace

from deepen.base.anatomy.families.refused import CROSS_ATTENTION, POST_LN
from deepen.base.anatomy.family import Config, Family, Heads, Refusal
from deepen.base.anatomy.parts import (
    ATTENTION_NORM,
    FFN_NORM,
    PLAIN,
    ROPE_BUFFER,
    affine,
    attention,
    fused_gated,
    gated,
    heads_with,
    megatron,
    norm,
    optional,
    plain,
    plain_heads,
    query_key_norms,
    rope_heads,
)
from deepen.base.anatomy.tensors import StoredSpec, Table, TensorSpec
from deepen.base.anatomy.vocabulary import Role


def _normed_heads(config: Config) -> Heads | None:
    """Read heads of families that can norm queries and keys."""
    return heads_with(normed=bool(config["qk_layernorm"]))(config)


def _stablelm_heads(config: Config) -> Heads | None:
    """Read StableLM's heads: where they are normed, each has a norm of its own."""
    own = bool(config["qk_layernorm"])
    return heads_with(normed=own, fixed=own)(config)


def _norm_per_head(name: str, role: Role) -> Table:
    """Describe a norm of queries or keys with a gain for every head."""
    gain = TensorSpec(role, ("head",), unit="*")
    return {f"{name}.norms.*.weight": StoredSpec((gain,), optional=True)}


_FAIRSEQ = {
    **norm("self_attn_layer_norm", "attention_norm"),
    **attention(output="out_proj"),
    **norm("final_layer_norm", "ffn_norm"),
    **plain("fc1", "fc2"),
}
_OPT = Family(
    "opt",
    {"block": _FAIRSEQ},
    embeddings="model.decoder.embed_tokens.weight",
    outside=("model.decoder.embed_positions.weight",),
    final_norm=affine("model.decoder.final_layer_norm"),
    optional_outside=("model.decoder.project_in.weight", "model.decoder.project_out.weight"),
    block_prefix="model.decoder.layers.",
    heads=plain_heads("num_attention_heads", "hidden_size"),
    refusals=(
        Refusal(lambda config: not config["do_layer_norm_before"], POST_LN),
        Refusal(
            lambda config: bool(
                config.get("_remove_final_layer_norm")
                or not config["layer_norm_elementwise_affine"]
            ),
            "its LayerNorms have no weights, or the last one is missing "
            "(layer_norm_elementwise_affine, _remove_final_layer_norm), which deepen does not know",
        ),
    ),
)

_XGLM = replace(
    _OPT,
    model_type="xglm",
    embeddings="model.embed_tokens.weight",
    outside=(),
    final_norm=affine("model.layer_norm"),
    optional_outside=(),
    # Older checkpoints store the sinusoids; loaders compute them.
    carried=("model.embed_positions.",),
    block_prefix="model.layers.",
    depth_field="num_layers",
    heads=plain_heads("attention_heads", "d_model"),
    refusals=(CROSS_ATTENTION,),
)

_BIOGPT = replace(
    _OPT,
    model_type="biogpt",
    embeddings="biogpt.embed_tokens.weight",
    outside=("biogpt.embed_positions.weight",),
    final_norm=affine("biogpt.layer_norm"),
    optional_outside=(),
    head="output_projection.weight",
    block_prefix="biogpt.layers.",
    refusals=(),
)

_PRE_NORM = {**PLAIN, **ROPE_BUFFER}
_STARCODER2 = Family(
    "starcoder2",
    {"block": {**_PRE_NORM, **plain("mlp.c_fc", "mlp.c_proj")}},
    final_norm=affine("model.norm"),
    heads=rope_heads,
)

_NEMOTRON = replace(
    _STARCODER2,
    model_type="nemotron",
    kinds={"block": {**_PRE_NORM, **plain()}},
    norm_offset=1.0,
)

# Where residuals are parallel, one norm feeds attention and FFN, and there is no ffn_norm.
_STABLELM = replace(
    _STARCODER2,
    model_type="stablelm",
    kinds={
        "block": {
            **_PRE_NORM,
            **_norm_per_head("self_attn.q_layernorm", "query_norm"),
            **_norm_per_head("self_attn.k_layernorm", "key_norm"),
            **optional(FFN_NORM),
            **gated(),
        }
    },
    heads=_stablelm_heads,
    bilinear=True,
)

_QUERY_KEY_LAYERNORMS = optional(query_key_norms(query="q_layernorm", key="k_layernorm"))

_PHI = Family(
    "phi",
    {
        "block": {
            **ATTENTION_NORM,
            **attention(output="dense"),
            **_QUERY_KEY_LAYERNORMS,
            **plain("mlp.fc1", "mlp.fc2"),
            **ROPE_BUFFER,
        }
    },
    final_norm=affine("model.final_layernorm"),
    optional_outside=("lm_head.bias",),
    heads=_normed_heads,
)

_PERSIMMON = replace(
    _PHI,
    model_type="persimmon",
    kinds={"block": megatron("self_attn", inner=_QUERY_KEY_LAYERNORMS)},
    optional_outside=(),
)


def _normed_on_the_way_in(config: Config) -> list[bool]:
    """Say which blocks of ModernBERT have a norm before their attention."""
    return [index > 0 for index in range(config["num_hidden_layers"])]


_MODERNBERT_FIRST = {
    **attention("attn", output="Wo"),
    **norm("mlp_norm", "ffn_norm"),
    **fused_gated("mlp", "Wi", "Wo"),
}
# The embeddings are normed already, so that block 0 has no norm before its attention.
_MODERNBERT = Family(
    "modernbert-decoder",
    {
        "first": _MODERNBERT_FIRST,
        "block": {**norm("attn_norm", "attention_norm"), **_MODERNBERT_FIRST},
    },
    embeddings="model.embeddings.tok_embeddings.weight",
    outside=("model.embeddings.norm.weight",),
    final_norm=("model.final_norm.weight",),
    optional_outside=(
        "model.embeddings.norm.bias",
        "model.final_norm.bias",
        *affine("lm_head.dense", "lm_head.norm"),
        "decoder.bias",
    ),
    head="decoder.weight",
    per_layer_lists=("layer_types",),
    pattern=_normed_on_the_way_in,
    heads=rope_heads,
    bilinear=True,
)

FAMILIES = (
    _OPT,
    _XGLM,
    _BIOGPT,
    _STARCODER2,
    _NEMOTRON,
    _STABLELM,
    _PHI,
    _PERSIMMON,
    _MODERNBERT,
)
