"""Keep config.json true for a deeper stack."""

from collections.abc import Mapping
from typing import Any

from deepen.anatomy.family import Family
from deepen.errors import DeepenError
from deepen.plans import Plan

_NOT_PER_LAYER = frozenset({"architectures", "eos_token_id", "bad_words_ids", "pad_token_id"})


def grown_config(
    config: Mapping[str, Any], resolved: Mapping[str, Any], family: Family, plan: Plan
) -> dict[str, Any]:
    """Return the config of the grown model.

    Args:
        config: The base's config.json; everything in it that does not count blocks is kept.
        resolved: The same config with the family's defaults filled in by transformers. A list with
            one entry per block that the file leaves out would be made anew from the larger count,
            and kept blocks would change their type; so it is taken from here and written out.
        family: The table that names the per-layer fields.
        plan: The new stack.

    Raises:
        DeepenError: A field looks like one entry per block, but the family's table has no word
            on it.
    """
    grown = dict(config)
    grown[family.depth_field] = plan.depth
    for field, value in config.items():
        per_layer = isinstance(value, list) and len(value) == plan.base_depth > 1
        if per_layer and field not in _NOT_PER_LAYER and field not in family.per_layer_lists:
            raise DeepenError(
                f"config.json has a list {field!r} with one entry per block; deepen does not know "
                f"how a {family.model_type!r} model uses it and would have to guess."
            )
    for field in family.per_layer_lists:
        entries = config.get(field) or resolved.get(field)
        if entries is not None:
            if len(entries) != plan.base_depth:
                raise DeepenError(
                    f"config.json has {len(entries)} entries in {field!r} for {plan.base_depth} "
                    f"blocks; correct the checkpoint."
                )
            grown[field] = [entries[parent] for parent in plan.type_parents]
    for field in family.prefix_counts:
        if isinstance(count := config.get(field), int):
            inside = [parent < count for parent in plan.type_parents]
            leading = inside.index(False) if False in inside else plan.depth
            grown[field] = leading + max(0, count - plan.base_depth)
    return grown
