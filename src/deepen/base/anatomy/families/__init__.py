"""All tables: the families that can be grown, and those that cannot, with the reason.

A package of your own adds a family through the entry point group ``deepen.families``; the entry's
name is the ``model_type``::

    [project.entry-points."deepen.families"]
    my_model = "my_package.my_model:FAMILY"
"""

from importlib.metadata import EntryPoint, entry_points

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
    for point in entry_points(group="deepen.families", name=model_type):
        return _load(point)
    return None


def _load(point: EntryPoint) -> Family:
    """Load a family of another package.

    Raises:
        DeepenError: It cannot be loaded, or is no table of this family.
    """
    try:
        added = point.load()
    except Exception as error:  # whatever a stranger's module raises as it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DeepenError(
            f"Family {point.name!r} cannot be loaded from {point.value!r} ({reason}); correct or "
            f"uninstall the package that adds it."
        ) from None
    if not isinstance(added, Family) or added.model_type != point.name:
        raise DeepenError(
            f"The entry point {point.name!r} names {point.value!r}, which is no "
            f"deepen.base.anatomy.Family of model_type {point.name!r}; correct the package."
        )
    return added
