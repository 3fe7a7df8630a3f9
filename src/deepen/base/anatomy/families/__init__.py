"""All tables: the families that can be grown, and those that cannot, with the reason."""

from deepen.base.anatomy.families import (
    balanced_mixtures,
    convolution_hybrids,
    gpt,
    latent_mixtures,
    layernorm,
    linear_hybrids,
    llama,
    mamba_hybrids,
    mixtures,
    postnorm,
    recurrent,
)
from deepen.base.anatomy.families.refused import REFUSED
from deepen.base.anatomy.family import Family

__all__ = ["FAMILIES", "REFUSED"]

_MODULES = (
    llama,
    gpt,
    layernorm,
    postnorm,
    mixtures,
    latent_mixtures,
    balanced_mixtures,
    mamba_hybrids,
    linear_hybrids,
    convolution_hybrids,
    recurrent,
)

FAMILIES: dict[str, Family] = {f.model_type: f for module in _MODULES for f in module.FAMILIES}
"""Every built-in family that can be grown, by ``model_type`` of its config.json."""
