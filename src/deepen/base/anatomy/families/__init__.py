"""All tables: the families that can be grown, and those that cannot, with the reason.

A package of your own adds a family through the entry point group ``deepen.families``; the entry's
name is the ``model_type``::

    [project.entry-points."deepen.families"]
    my_model = "my_package.my_model:FAMILY"
"""

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
from deepen.common.errors import DeepenError
from deepen.common.plugins import added

__all__ = ["FAMILIES", "REFUSED", "family_named"]

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


def family_named(model_type: str) -> Family | None:
    """Return the table of a family, built in or of an installed package; ``None`` if none has it.

    Raises:
        DeepenError: A package has it, but it cannot be used.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    family = added("deepen.families", model_type, Family)
    if family is not None and family.model_type != model_type:
        raise DeepenError(
            f"The entry point {model_type!r} of deepen.families names a table of model_type "
            f"{family.model_type!r}; correct the package that adds it."
        )
    return family
