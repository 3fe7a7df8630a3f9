"""Keep config.json true for a deeper stack."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from deepen.base.anatomy.family import Family
from deepen.base.folder import portable
from deepen.base.quantised import FIELD as QUANTISATION
from deepen.common.errors import DeepenError
from deepen.planning.pattern import PERIODS, follows_rule
from deepen.planning.plan import Keep, Plan

# Lists that count something else: tokens, classes, frequencies of RoPE.
_NOT_PER_LAYER = frozenset(
    {
        "architectures",
        "eos_token_id",
        "bad_words_ids",
        "pad_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "keys_to_ignore_at_inference",
        "short_factor",
        "long_factor",
        "mrope_section",
        "time_step_limit",
        "mlp_multipliers",
        "ssm_multipliers",
        "mtp_layers_block_type",
        "deepen",
        "quantization_config",
    }
)


def grown_config(
    config: Mapping[str, Any], resolved: Mapping[str, Any], family: Family, plan: Plan
) -> dict[str, Any]:
    """Return the config of the grown model.

    Args:
        config: The base's config.json; everything in it that does not count blocks is kept, but for
            a period that blocks no longer follow, and what names files that stay behind.
        resolved: The same config with the family's defaults filled in by transformers. A list with
            one entry per block that the file leaves out would be made anew from the larger count,
            and kept blocks would change their type; so it is taken from here and written out.
        family: The table that names the per-layer fields.
        plan: The new stack.

    Raises:
        DeepenError: A field looks like one entry per block, but the family's table has no word
            on it.
    """
    config, resolved = portable(config), portable(resolved)
    explicit = family.explicit(resolved) if family.explicit else {}
    resolved = {**resolved, **explicit}
    grown = {**config, **explicit, family.depth_field: plan.depth}
    if family.for_depth:
        grown |= family.for_depth(resolved, plan.depth)
    grown |= {field: plan.depth for field in family.depth_aliases if field in config}
    if entry := config.get(QUANTISATION):
        grown[QUANTISATION] = _renumbered(entry, family, plan)
    _refuse_unknown((config, resolved), family, plan.base_depth)
    for field in family.per_layer_lists:
        entries = grown.get(field) or resolved.get(field)
        if isinstance(entries, list | tuple | str):
            grown[field] = _extended(field, entries, plan)
    for field in family.index_lists:
        entries = grown.get(field) or resolved.get(field)
        if isinstance(entries, list | tuple):
            listed = {int(entry) % plan.base_depth for entry in entries}
            grown[field] = [i for i, parent in enumerate(plan.type_parents) if parent in listed]
    for field in family.prefix_counts:
        count = config.get(field, resolved.get(field))
        if isinstance(count, int):
            grown[field] = _counted(field, count, plan)
    if overrides := resolved.get("per_layer_config"):  # of any family: block → its own values
        by_block = {int(index): entry for index, entry in overrides.items()}
        parents = enumerate(plan.type_parents)
        grown["per_layer_config"] = {str(i): by_block[p] for i, p in parents if p in by_block}
    grown |= family.rewrite(config, plan.type_parents) if family.rewrite else {}
    _check_rooted(family, plan)
    resolved = {family.depth_field: plan.base_depth, **resolved}
    if follows_rule(config, resolved, family, grown) is False:
        # From now on the lists alone tell what blocks are.
        grown = {field: value for field, value in grown.items() if field not in PERIODS}
    return grown


def _refuse_unknown(configs: Iterable[Mapping[str, Any]], family: Family, depth: int) -> None:
    """Refuse lists with one entry per block that no table knows.

    Raises:
        DeepenError: There is one.
    """
    known = {*family.per_layer_lists, *family.index_lists}
    for config in configs:
        for field in _lists(config, depth):
            if field not in known:
                raise DeepenError(
                    f"config.json has a list {field!r} with one entry per block; deepen does not "
                    f"know how a {family.model_type!r} model uses it and would have to guess."
                )


def _check_rooted(family: Family, plan: Plan) -> None:
    """Refuse a stack in which a block that is given something by its index has another one.

    Raises:
        DeepenError: There is one.
    """
    if plan.blocks[: family.rooted] != tuple(map(Keep, range(family.rooted))):
        raise DeepenError(
            f"What images show is added to the lowest {family.rooted} blocks of a "
            f"{family.model_type!r} model by their index, and a new block would come in between; "
            f"choose another placement."
        )


def _extended(field: str, entries: Sequence[Any], plan: Plan) -> list[Any] | str:
    """Give every block its parent's entry of a list, or character of a string."""
    if len(entries) != plan.base_depth:
        raise DeepenError(
            f"config.json has {len(entries)} entries in {field!r} for {plan.base_depth} "
            f"blocks; correct the checkpoint."
        )
    chosen = [entries[parent] for parent in plan.type_parents]
    return "".join(chosen) if isinstance(entries, str) else chosen


def _counted(field: str, count: int, plan: Plan) -> int:
    """Count the leading blocks of a kind again."""
    inside = [parent < count for parent in plan.type_parents]
    leading = inside.index(False) if False in inside else plan.depth
    if sum(inside) != leading:
        raise DeepenError(
            f"config.json counts the first {count} blocks in {field!r}, and the new blocks "
            f"would not leave them together; choose another placement."
        )
    return leading + max(0, count - plan.base_depth)


def _renumbered(entry: Any, family: Family, plan: Plan) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """Count blocks anew in the names of modules that how weights are quantised tells apart.

    Args:
        entry: ``quantization_config``, or a part of it.
        family: The family's table.
        plan: The new stack.

    Raises:
        DeepenError: A name tells blocks apart in another way than by the path of one.
    """
    if isinstance(entry, Mapping):
        return {key: _renumbered(part, family, plan) for key, part in entry.items()}
    if not isinstance(entry, list | tuple):
        return entry
    return [name for part in entry for name in _in_grown(part, family, plan)]


def _in_grown(entry: Any, family: Family, plan: Plan) -> list[Any]:  # noqa: ANN401
    """Return what an entry of a list of modules is called in the grown model."""
    if not isinstance(entry, str):
        return [_renumbered(entry, family, plan)]
    path = family.block_prefix.removeprefix("model.")
    found = re.fullmatch(rf"((?:model\.)?{re.escape(path)})(\d+)((?:\.[\w.]*)?)", entry)
    if found is None:
        new = enumerate(plan.type_parents)
        if any(_named(entry, i, family) != _named(entry, parent, family) for i, parent in new):
            raise DeepenError(
                f"{entry!r}, of {QUANTISATION} in config.json, tells blocks apart by a pattern, "
                f"and would mean others in a deeper model; list the modules of each block by path."
            )
        return [entry]
    before, index, after = found[1], int(found[2]), found[3]
    if index >= plan.base_depth:
        return [f"{before}{index + plan.depth - plan.base_depth}{after}"]
    parents = enumerate(plan.type_parents)
    return [f"{before}{i}{after}" for i, parent in parents if parent == index]


def _named(entry: str, index: int, family: Family) -> set[str]:
    """Return the modules of a block that an entry names, as a path, its end or its pattern."""
    modules = {suffix.rpartition(".")[0] for table in family.kinds.values() for suffix in table}
    try:
        pattern = re.compile(entry.removeprefix("re:"))
    except re.error:
        pattern = re.compile(re.escape(entry))
    paths = {module: family.name(index, module.replace("*", "0")) for module in modules}
    return {m for m, path in paths.items() if pattern.match(path) or path.endswith(entry)}


def _lists(config: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield the fields, nested ones too, that hold one entry per block."""
    for field, value in config.items():
        if field in _NOT_PER_LAYER:
            continue
        if isinstance(value, Mapping):
            yield from _lists(value, depth)
        elif isinstance(value, list | tuple) and len(value) == depth > 1:
            yield field
