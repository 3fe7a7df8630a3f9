"""What tables are put together from: layers, attention, FFNs, norms, and readers of heads.

Those of mixtures of experts are in ``experts``, those of token mixers that are no attention in
``mixers``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from deepen.base.anatomy.family import Config, Heads, whole_heads
from deepen.base.anatomy.tensors import Split, StoredSpec, Table, TensorSpec
from deepen.base.anatomy.vocabulary import Axis, Role


def norm(name: str, role: Role, axis: Axis = "residual", *, silent: float | None = None) -> Table:
    """Describe an RMSNorm, or a LayerNorm with its bias; ``silent`` for a norm on the way out."""
    return {
        f"{name}.weight": StoredSpec((TensorSpec(role, (axis,), silent),)),
        f"{name}.bias": StoredSpec(
            (TensorSpec(role, (axis,), None if silent is None else 0.0, bias=True),), optional=True
        ),
    }


def linear(
    name: str,
    role: Role,
    out_axis: Axis,
    in_axis: Axis,
    *,
    unit: str = "",
    writes: bool | None = None,
    transposed: bool = False,
) -> Table:
    """Describe a linear layer: its weight and, where there is one, its bias.

    Args:
        name: Name of the layer inside the block; ``*`` where an expert's number stands.
        role: What it does.
        out_axis: Label of its rows.
        in_axis: Label of its columns.
        unit: Which of several FFNs it belongs to; ``*`` for the expert's number.
        writes: Whether it must be zero for the block to add nothing; by default if its rows are
            the residual stream's. False in families with a norm on the way out.
        transposed: Whether the weight is stored ``[in, out]``.
    """
    silent = 0.0 if (out_axis == "residual" if writes is None else writes) else None
    weight = TensorSpec(role, (out_axis, in_axis), silent, unit=unit)
    bias = TensorSpec(role, (out_axis,), silent, bias=True, unit=unit)
    return {
        f"{name}.weight": StoredSpec((weight,), transposed=transposed),
        f"{name}.bias": StoredSpec((bias,), optional=True),
    }


def fused(
    name: str,
    parts: Mapping[Role, Axis],
    in_axis: Axis = "residual",
    *,
    split: Split = "rows",
    unit: str = "",
    transposed: bool = False,
) -> Table:
    """Describe a linear layer that computes several things, and its bias where there is one.

    Args:
        name: Name of the layer inside the block.
        parts: Role → label of its rows, in stored order.
        in_axis: Label of the columns.
        split: How the parts share the rows.
        unit: Which of several FFNs it belongs to.
        transposed: Whether the weight is stored ``[in, out]``.
    """
    weights = tuple(TensorSpec(r, (axis, in_axis), unit=unit) for r, axis in parts.items())
    biases = tuple(TensorSpec(r, (axis,), bias=True, unit=unit) for r, axis in parts.items())
    return {
        f"{name}.weight": StoredSpec(weights, split, transposed),
        f"{name}.bias": StoredSpec(biases, split, optional=True),
    }


def bank(
    name: str,
    parts: Mapping[Role, tuple[Axis, Axis]],
    *,
    split: Split | None = None,
    transposed: bool = False,
    bias: str | None = None,
    writes: bool | None = None,
) -> Table:
    """Describe one tensor that holds a weight of every expert, ``[experts, …]``.

    Args:
        name: Name of the tensor inside the block.
        parts: Role → (label of its rows, label of its columns), in stored order.
        split: How several parts share the rows.
        transposed: Whether weights are stored ``[in, out]``.
        bias: Name of the tensor with all experts' biases, where there may be one.
        writes: As in ``linear``.
    """
    silent = {
        role: 0.0 if (out == "residual" if writes is None else writes) else None
        for role, (out, _) in parts.items()
    }
    weights = tuple(TensorSpec(r, axes, silent[r], unit="*") for r, axes in parts.items())
    table: dict[str, StoredSpec] = {name: StoredSpec(weights, split, transposed, bank=True)}
    if bias:
        biases = tuple(
            TensorSpec(r, (axes[0],), silent[r], bias=True, unit="*") for r, axes in parts.items()
        )
        table[bias] = StoredSpec(biases, split, bank=True, optional=True)
    return table


def other(
    name: str,
    role: Role,
    axes: tuple[Axis, ...],
    *,
    optional: bool = False,
    silent: float | None = None,
) -> Table:
    """Describe any other parameter, whose full name this is."""
    return {name: StoredSpec((TensorSpec(role, axes, silent),), optional=optional)}


def buffers(*names: str) -> Table:
    """Describe tensors that are no parameters; new blocks get a copy of their parent's."""
    return {name: StoredSpec((TensorSpec("buffer", ()),), optional=True) for name in names}


def attention(name: str = "self_attn", *, output: str = "o_proj", writes: bool = True) -> Table:
    """Describe attention with a linear layer each for query, key, value and output."""
    return {
        **linear(f"{name}.q_proj", "query", "query", "residual"),
        **linear(f"{name}.k_proj", "key", "key_value", "residual"),
        **linear(f"{name}.v_proj", "value", "value", "residual"),
        **linear(f"{name}.{output}", "attention_output", "residual", "attended", writes=writes),
    }


def latent_attention(name: str = "self_attn", *, query: bool, writes: bool = True) -> Table:
    """Describe multi-head latent attention. arXiv 2405.04434, section 2.1.

    Keys and values are made from a small latent vector per token, and beside it stands one key of
    RoPE dimensions for all heads.

    Args:
        name: Name of the attention inside the block.
        query: Whether queries are made from a latent vector too.
        writes: As in ``linear``, for the output projection.
    """
    latent = {
        **linear(f"{name}.q_a_proj", "latent_query_down", "latent_query", "residual"),
        **norm(f"{name}.q_a_layernorm", "latent_query_norm", "latent_query"),
        **linear(f"{name}.q_b_proj", "latent_query_up", "query", "latent_query"),
    }
    down, up = f"{name}.kv_a_proj_with_mqa", f"{name}.kv_b_proj"
    return {
        **(latent if query else linear(f"{name}.q_proj", "query", "query", "residual")),
        **linear(down, "latent_key_value_down", "latent_and_rotary", "residual"),
        **norm(f"{name}.kv_a_layernorm", "latent_key_value_norm", "latent_key_value"),
        **linear(up, "latent_key_value_up", "key_value", "latent_key_value"),
        **linear(f"{name}.o_proj", "attention_output", "residual", "attended", writes=writes),
    }


def gated(name: str = "mlp", *, axis: Axis = "ffn", unit: str = "", writes: bool = True) -> Table:
    """Describe a gated FFN: gate, up and down projection."""
    return {
        **linear(f"{name}.gate_proj", "gate", axis, "residual", unit=unit),
        **linear(f"{name}.up_proj", "up", axis, "residual", unit=unit),
        **linear(f"{name}.down_proj", "ffn_output", "residual", axis, unit=unit, writes=writes),
    }


def fused_gated(
    name: str = "mlp",
    gate_up: str = "gate_up_proj",
    down: str = "down_proj",
    *,
    axis: Axis = "ffn",
    unit: str = "",
    writes: bool = True,
) -> Table:
    """Describe a gated FFN with one linear layer for gate and up."""
    return {
        **fused(f"{name}.{gate_up}", {"gate": axis, "up": axis}, unit=unit),
        **linear(f"{name}.{down}", "ffn_output", "residual", axis, unit=unit, writes=writes),
    }


def plain(
    up: str = "mlp.up_proj", down: str = "mlp.down_proj", *, transposed: bool = False
) -> Table:
    """Describe an FFN of two matrices, without a gate."""
    return {
        **linear(up, "up", "ffn", "residual", transposed=transposed),
        **linear(down, "ffn_output", "residual", "ffn", transposed=transposed),
    }


def query_key_norms(
    name: str = "self_attn", axis: Axis = "head", *, query: str = "q_norm", key: str = "k_norm"
) -> Table:
    """Describe the norms of queries and keys that several families have."""
    return {
        **norm(f"{name}.{query}", "query_norm", axis),
        **norm(f"{name}.{key}", "key_norm", axis),
    }


def wide_norms(name: str = "self_attn") -> Table:
    """Describe norms of all queries of a token as one vector, and of all its keys."""
    return {
        **norm(f"{name}.q_norm", "query_norm", "query"),
        **norm(f"{name}.k_norm", "key_norm", "key_value"),
    }


def sinks(name: str = "self_attn.sinks") -> Table:
    """Describe one learned logit per head, which takes attention away from all tokens."""
    return other(name, "sinks", ("heads",))


def megatron(name: str, *, norms: Table | None = None, inner: Table | None = None) -> Table:
    """Describe a block with the names of Megatron-LM: GPT-NeoX, Falcon, BLOOM, Persimmon.

    Args:
        name: Name of the attention.
        norms: The norms on the way in; by default one each for attention and FFN.
        inner: The norms of queries and keys, if it has them.
    """
    return {
        **({**ATTENTION_NORM, **FFN_NORM} if norms is None else norms),
        **fused(f"{name}.query_key_value", QUERY_KEY_VALUE, split="heads"),
        **(inner or {}),
        **linear(f"{name}.dense", "attention_output", "residual", "attended"),
        **plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        **buffers(f"{name}.rotary_emb.inv_freq"),
    }


def optional(table: Table) -> Table:
    """Describe tensors that some models of a family have and others lack, in all their blocks."""
    return {name: replace(spec, optional=True) for name, spec in table.items()}


def affine(*names: str) -> tuple[str, ...]:
    """Return the tensors of LayerNorms outside all blocks."""
    return tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))


def heads_with(**differences: Any) -> Callable[[Config], Heads | None]:
    """Return a reader of heads that RoPE turns, all free but for some fields of ``Heads``."""
    free = {"normed": False, "fixed": False, "gated": False, **differences}

    def read(config: Config) -> Heads | None:
        heads = whole_heads(config)
        return heads and replace(heads, **free)

    return read


def plain_heads(heads: str, width: str, *, fixed: bool = False) -> Callable[[Config], Heads]:
    """Return a reader of heads that share no keys and that no RoPE turns.

    Args:
        heads: The config field that counts them.
        width: The config field of the hidden size.
        fixed: Whether they cannot change places.
    """

    def read(config: Config) -> Heads:
        count, size = config[heads], config[width] // config[heads]
        return Heads(count, count, size, size, normed=False, fixed=fixed, gated=False)

    return read


def clipped(read: Callable[[Config], Heads | None]) -> Callable[[Config], Heads | None]:
    """Hold the bases of heads where ``clip_qkv`` clips queries, keys and values one by one."""

    def read_clipped(config: Config) -> Heads | None:
        heads = read(config)
        clips = {**config, **config.get("attn_config", {})}.get("clip_qkv") is not None
        return replace(heads, normed=True, gated=True) if heads and clips else heads

    return read_clipped


def no_heads(config: Config) -> None:
    """Read no heads, where more than query, key, value and output hangs on them."""


rope_heads = heads_with()
normed_heads = heads_with(normed=True)
adjacent_heads = heads_with(planes="adjacent")
unrotated_heads = heads_with(rotary=0)

QUERY_KEY_VALUE: Mapping[Role, Axis] = {"query": "query", "key": "key_value", "value": "value"}
ATTENTION_NORM = norm("input_layernorm", "attention_norm")
FFN_NORM = norm("post_attention_layernorm", "ffn_norm")
ATTENTION_OUTPUT_NORM = norm("post_attention_layernorm", "attention_output_norm", silent=0.0)
FFN_OUTPUT_NORM = norm("post_feedforward_layernorm", "ffn_output_norm", silent=0.0)
# Checkpoints from before transformers 4.32 store the RoPE frequencies; loaders ignore them.
ROPE_BUFFER = buffers("self_attn.rotary_emb.inv_freq")
PLAIN: Table = {**ATTENTION_NORM, **attention(), **FFN_NORM}
NORMED: Table = {**PLAIN, **query_key_norms()}

LAYER_TYPES = ("layer_types",)
