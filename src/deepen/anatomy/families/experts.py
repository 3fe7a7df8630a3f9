"""Mixtures of experts."""

from deepen.anatomy.families.llama import ATTENTION_NORM, FFN_NORM, attention
from deepen.anatomy.family import Family
from deepen.anatomy.tensors import Table, bank, linear

_GATE_UP = {"gate": ("expert_ffn", "residual"), "up": ("expert_ffn", "residual")}
_DOWN = {"ffn_output": ("residual", "expert_ffn")}


def banked(name: str = "mlp.experts") -> Table:
    """Describe experts as transformers holds them in memory: one tensor for all."""
    return {
        **bank(f"{name}.gate_up_proj", _GATE_UP, split="rows"),
        **bank(f"{name}.down_proj", _DOWN),
    }


def single(name: str, gate: str, up: str, down: str) -> Table:
    """Describe experts with tensors of their own, as checkpoints hold them."""
    unit = "*"
    return {
        **linear(f"{name}.*.{gate}", "gate", "expert_ffn", "residual", unit=unit),
        **linear(f"{name}.*.{up}", "up", "expert_ffn", "residual", unit=unit),
        **linear(f"{name}.*.{down}", "ffn_output", "residual", "expert_ffn", unit=unit),
    }


_ATTENTION = {**ATTENTION_NORM, **attention(), **FFN_NORM}

MIXTRAL = Family(
    "mixtral",
    {
        "experts": {
            **_ATTENTION,
            **linear("block_sparse_moe.gate", "router", "expert", "residual"),
            **single("block_sparse_moe.experts", "w1", "w3", "w2"),
        },
        "experts in memory": {
            **_ATTENTION,
            **linear("mlp.gate", "router", "expert", "residual"),
            **banked(),
        },
    },
)

FAMILIES = (MIXTRAL,)

REFUSED: dict[str, str] = {}
