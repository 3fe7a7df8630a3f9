"""Mixtures with latent attention (MLA): the DeepSeek family and its kin.

Some choose for every query the few keys that it attends to, by an indexer: a small attention of its
own, which has no output.
"""

from typing import Any

from deepen.base.anatomy.families.llama import (
    ATTENTION_NORM,
    FFN_NORM,
    gated,
    latent_attention,
    no_heads,
)
from deepen.base.anatomy.families.mixtures import (
    BOTH_TYPES,
    DENSE_FIRST,
    FFN_TYPES,
    Kinds,
    banked,
    either,
    expert_groups,
    mixture,
    router,
    shared,
    single,
)
from deepen.base.anatomy.family import Config, Family, Refusal
from deepen.base.anatomy.tensors import Table, linear, norm

_INDEXER: Table = {
    **linear("self_attn.indexer.wq_b", "indexer_query", "indexer_query", "query_latent"),
    **linear("self_attn.indexer.wk", "indexer_key", "indexer_dimension", "residual"),
    **norm("self_attn.indexer.k_norm", "indexer_key_norm", "indexer_dimension"),
    **linear("self_attn.indexer.weights_proj", "indexer_weight", "indexer_head", "residual"),
}
_LATENT: Table = {**ATTENTION_NORM, **latent_attention(query=True), **FFN_NORM}
_PLAIN: Table = {**ATTENTION_NORM, **latent_attention(query=False), **FFN_NORM}
_INDEXED: Table = {**_LATENT, **_INDEXER}
_ROUTER: Table = router(correction="mlp.gate.e_score_correction_bias")
_BESIDE: Table = {**_ROUTER, **shared()}


def _either_query(beside: Table) -> dict[str, Table]:
    """Compose the blocks of a family whose queries may or may not be latent."""
    latent, plain = (mixture(around, beside, dense=gated()) for around in (_LATENT, _PLAIN))
    return either(latent, plain, "whole queries")


# What leaves the experts of A.X K1 is normed; what leaves its dense FFNs is not.
_AXK1 = mixture(
    _LATENT,
    {
        **_ROUTER,
        **shared(writes=False),
        **norm("post_mlp_layernorm", "ffn_output_norm", silent=0.0),
    },
    stored=single(writes=False),
    memory=banked(writes=False),
    renamed={"post_mlp_layernorm": "mlp.post_mlp_layernorm"},
    dense=gated(),
)


def _gated_norm(name: str, role: str) -> Table:
    """Describe a norm whose output is multiplied by a gate that it computes from itself."""
    return {
        **norm(f"{name}.norm", f"{role}_norm"),
        **linear(f"{name}.W_down", f"{role}_norm_gate_down", "norm_gate", "residual"),
        **linear(f"{name}.W_up", f"{role}_norm_gate_up", "residual", "norm_gate", writes=False),
    }


def _axk2() -> dict[str, Table]:
    """Compose the blocks of A.X K2: one projection makes the queries and a gate on the output."""
    query = "self_attn.q_b_proj"
    attention: Table = {
        **_gated_norm("input_layernorm", "attention"),
        **latent_attention(query=True),
        **linear(query, "latent_query_up", "query_and_gate", "query_latents"),
        **_INDEXER,
    }
    renamed = {"W_down": "mlp.fc1", "W_up": "mlp.fc2", "q_b_proj": "q_gate_proj"}
    dense = mixture({**attention, **FFN_NORM}, {}, renamed=renamed, dense=gated())
    normed = {**attention, **_gated_norm("post_attention_layernorm", "ffn")}
    return {**dense, **mixture(normed, _BESIDE, renamed=renamed)}


def _shares_its_choice(config: Config) -> bool:
    """Whether blocks attend to the keys that the indexer of a block below chose."""
    return "shared" in (config.get("indexer_types") or ())


_SHARED_CHOICE = (
    "some of its blocks attend to the keys that the indexer of a block below chose, and a new "
    "block could come in between"
)


def _family(model_type: str, kinds: Kinds, *lists: str, **rules: Any) -> Family:
    """Return a family; multi-token-prediction blocks stand after its last block."""
    return Family(
        model_type,
        kinds,
        per_layer_lists=lists,
        prefix_counts=DENSE_FIRST,
        trailing_field="num_nextn_predict_layers",
        sizes=expert_groups,
        heads=no_heads,
        **rules,
    )


FAMILIES = (
    _family("deepseek_v2", _either_query({**router(), **shared()})),
    _family("deepseek_v3", _either_query(_BESIDE)),
    _family("deepseek_v32", mixture(_INDEXED, _BESIDE, dense=gated()), *BOTH_TYPES),
    _family("glm4_moe_lite", _either_query(_BESIDE), *FFN_TYPES),
    _family(
        "glm_moe_dsa",
        mixture(_INDEXED, _BESIDE, dense=gated()),
        *BOTH_TYPES,
        "indexer_types",
        refusals=(Refusal(_shares_its_choice, _SHARED_CHOICE),),
    ),
    _family("axk1", _AXK1, *FFN_TYPES),
    _family("axk2", _axk2(), *BOTH_TYPES),
)

REFUSED: dict[str, str] = {"hy_v4": _SHARED_CHOICE}
