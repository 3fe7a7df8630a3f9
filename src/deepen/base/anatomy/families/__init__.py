"""All tables: the families that can be grown, and those that cannot, with the reason."""

from deepen.base.anatomy.families import encoders, experts, gpt, hybrid, layernorm, llama, postnorm
from deepen.base.anatomy.family import Family

_MODULES = (llama, gpt, layernorm, postnorm, experts, hybrid, encoders)

FAMILIES: dict[str, Family] = {f.model_type: f for module in _MODULES for f in module.FAMILIES}
"""Every family that can be grown, by ``model_type`` of its config.json."""

REFUSED: dict[str, str] = {
    model_type: reason for module in _MODULES for model_type, reason in module.REFUSED.items()
}
"""Families that cannot be grown right: ``model_type`` → why, as the rest of a sentence."""
