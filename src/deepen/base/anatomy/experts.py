"""What tables of mixtures of experts are put together from.

Most checkpoints hold three tensors for each expert, and transformers one or two for all of them:
a table has a kind of block for each layout. Kinds are composed: everything around the FFN, the
router and shared experts beside the experts, and the experts themselves.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deepen.base.anatomy.family import Config
from deepen.base.anatomy.parts import LAYER_TYPES, bank, gated, linear, other
from deepen.base.anatomy.tensors import Kinds, Split, Table
from deepen.base.anatomy.vocabulary import Axis, Role

_GATE_UP: Mapping[Role, tuple[Axis, Axis]] = {
    "gate": ("expert_ffn", "residual"),
    "up": ("expert_ffn", "residual"),
}
_DOWN: Mapping[Role, tuple[Axis, Axis]] = {"ffn_output": ("residual", "expert_ffn")}

FFN_TYPES = ("mlp_layer_types",)
BOTH_TYPES = (*LAYER_TYPES, *FFN_TYPES)
DENSE_FIRST = ("first_k_dense_replace",)


def banked(
    name: str = "mlp.experts",
    *,
    gate_up: str = "gate_up_proj",
    down: str = "down_proj",
    split: Split = "rows",
    transposed: bool = False,
    biased: bool = False,
    writes: bool | None = None,
) -> Table:
    """Describe experts as transformers holds them in memory: one tensor for all.

    Args:
        name: Name of the module inside the block.
        gate_up: Name of the tensor with gate and up projections.
        down: Name of the tensor with down projections.
        split: How gate and up share the rows.
        transposed: Whether each expert's weights are stored ``[in, out]``.
        biased: Whether there are biases too.
        writes: As in ``linear``.
    """
    both, out = f"{name}.{gate_up}", f"{name}.{down}"
    how: dict[str, Any] = {"transposed": transposed, "writes": writes}
    return {
        **bank(both, _GATE_UP, split=split, bias=f"{both}_bias" if biased else None, **how),
        **bank(out, _DOWN, bias=f"{out}_bias" if biased else None, **how),
    }


def single(
    name: str = "mlp.experts",
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    *,
    writes: bool | None = None,
) -> Table:
    """Describe experts with tensors of their own, as checkpoints hold them."""
    unit = "*"
    return {
        **linear(f"{name}.*.{gate}", "gate", "expert_ffn", "residual", unit=unit),
        **linear(f"{name}.*.{up}", "up", "expert_ffn", "residual", unit=unit),
        **linear(
            f"{name}.*.{down}", "ffn_output", "residual", "expert_ffn", unit=unit, writes=writes
        ),
    }


# Mixtral and its kin call gate, up and down w1, w3 and w2, and their FFN otherwise than in memory.
W123 = single("block_sparse_moe.experts", "w1", "w3", "w2")
SPARSE_MOE = {"block_sparse_moe.": "mlp."}


def router(name: str = "mlp.gate", correction: str = "") -> Table:
    """Describe what sends tokens to experts: its weight, and the bias that only its choice sees."""
    table = linear(name, "router", "expert", "residual")
    return {**table, **other(correction, "router_correction", ("expert",))} if correction else table


def shared(name: str = "mlp.shared_experts", *, writes: bool = True) -> Table:
    """Describe an FFN that every token passes, beside the experts."""
    return gated(name, axis="shared_ffn", unit="shared", writes=writes)


def mixture(
    around: Table,
    beside: Table,
    *,
    stored: Table | None = None,
    memory: Table | None = None,
    renamed: Mapping[str, str] = MappingProxyType({}),
    dense: Table | None = None,
) -> dict[str, Table]:
    """Compose the kinds of block of a mixture, in both layouts.

    Args:
        around: Everything but the FFN.
        beside: Router and shared experts.
        stored: The experts as checkpoints hold them; by default as Qwen's do.
        memory: The experts as transformers holds them; by default as most families do.
        renamed: Parts of other names that transformers changes as it loads: stored → in memory.
        dense: The FFN of blocks without experts, where there are such.
    """
    inside, around_inside = _renamed({**around, **beside}, renamed), _renamed(around, renamed)
    kinds: dict[str, Table] = {
        "experts": {**around, **beside, **(single() if stored is None else stored)},
        "experts in memory": {**inside, **(banked() if memory is None else memory)},
    }
    if dense is not None:
        kinds["dense"] = {**around, **dense}
        if around_inside.keys() != around.keys():
            kinds["dense in memory"] = {**around_inside, **dense}
    return kinds


def _renamed(table: Table, parts: Mapping[str, str]) -> Table:
    """Return a table with parts of its names replaced."""
    result = {}
    for name, spec in table.items():
        for old, new in parts.items():
            name = name.replace(old, new)
        result[name] = spec
    return result


def expert_groups(config: Config, shapes: object = None) -> dict[Axis, int]:
    """Count the groups of experts that a router chooses among before it chooses experts."""
    groups, chosen = config.get("n_group") or 1, config.get("topk_group") or 1
    limited = config.get("topk_method") != "greedy" and chosen < groups
    return {"expert_groups": groups if limited else 1}


def dense_listed(config: Config) -> dict[str, Any]:
    """Write "every n-th block has experts" out as the list of the blocks that have none."""
    step, dense = config.get("decoder_sparse_step"), config.get("mlp_only_layers") or []
    if step in (None, 1):
        return {}
    blocks = range(config["num_hidden_layers"])
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in blocks if i in dense or (i + 1) % step],
    }


def either(without: Kinds, having: Kinds, what: str) -> dict[str, Table]:
    """Join the kinds of models that lack something with those of models that have it."""
    return {**without, **{f"{kind}, {what}": table for kind, table in having.items()}}
