"""Patterns of block types that a rule on the index makes: kept, broken, and grown along.

Where blocks differ in type (sliding and full attention, with and without RoPE), config.json lists
every block's type, and transformers reads the list. The list was made by a rule, from a period that
may stand beside it, and runtimes that do not read the list make it anew: llama.cpp does for Gemma
3, Cohere 2, SmolLM3, Qwen3-Next. A grown stack is right there only if the rule, asked for the new
depth, makes of every block what the list says.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deepen.base.anatomy.family import Config, Family
from deepen.base.checkpoint import config_object
from deepen.common.errors import DeepenError

Rule = Callable[[int], Sequence[object] | None]
"""Says what each block of a stack of so many blocks is; ``None`` if it cannot say."""

PERIODS = (
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "full_attention_interval",
    "global_attn_every_n_layers",
    "layer_group_size",
    "no_rope_layer_interval",
)
"""Config fields from which transformers makes a list of types where config.json has none."""
BROKEN_PATTERN = (
    "config.json lists the type of every block, and the new blocks break the rule that made the "
    "list: a runtime that makes it anew (llama.cpp does for Gemma 3 and others) computes something "
    "else, unless you grow with --placement periods."
)
"""What to know of a growth that does not follow its base's rule."""


def listed_types(config: Config, family: Family) -> list[str] | None:
    """Return what a config's lists say of each block, as JSON; ``None`` if one has another length.

    Args:
        config: A config with the family's defaults filled in.
        family: The table that names the lists.
    """
    depth = int(config[family.depth_field])
    written = {**config, **(family.explicit(config) if family.explicit else {})}
    columns: list[Sequence[object]] = []
    for field in family.per_layer_lists:
        entries = written.get(field)
        if isinstance(entries, list | tuple | str):
            columns.append(entries)
    for field in family.index_lists:
        entries = written.get(field)
        if isinstance(entries, list | tuple):
            listed = {int(entry) % depth for entry in entries}
            columns.append([index in listed for index in range(depth)])
    if any(len(column) != depth for column in columns):
        return None
    return [json.dumps([column[index] for column in columns]) for index in range(depth)]


def rule_of(config: Config, resolved: Config, family: Family) -> Rule | None:
    """Return the rule that makes a model's pattern; ``None`` if its lists follow none.

    Args:
        config: The model's config.json.
        resolved: The same with the family's defaults filled in.
        family: The family's table.
    """
    if family.pattern:
        pattern = family.pattern
        return lambda depth: pattern({**resolved, family.depth_field: depth})
    base = listed_types(resolved, family)
    if base is None or _made_anew(config, family, len(base)) != base:
        return None
    return lambda depth: _made_anew(config, family, depth)


def _made_anew(config: Config, family: Family, depth: int) -> Sequence[object] | None:
    """Return the types that transformers makes where config.json lists none, if it can."""
    lists = {*family.per_layer_lists, *family.index_lists}
    kept = {field: value for field, value in config.items() if field not in lists}
    sized = {field: depth for field in family.depth_aliases if field in config}
    try:
        read = config_object({**kept, **sized, family.depth_field: depth})
        named = {family.depth_field: getattr(read, family.depth_field), **read.to_dict()}
        types = listed_types(named, family)
    except Exception:  # whatever transformers raises for a config without lists
        return None
    return types if types is not None and len(types) == depth else None


def follows_rule(
    config: Config, resolved: Config, family: Family, grown: Mapping[str, Any]
) -> bool | None:
    """Whether a grown model's lists are what the rule of its base makes of the new depth.

    Args:
        config: The base's config.json.
        resolved: The same with the family's defaults filled in.
        family: The family's table.
        grown: The grown model's config.json.

    Returns:
        ``None`` if the base's lists follow no rule, the rule cannot be asked for another depth, or
        all blocks are of one type.
    """
    if family.pattern or rule_of(config, resolved, family) is None:
        return None
    types = listed_types({**resolved, **grown}, family)
    if types is None or len(set(types)) < 2:
        return None
    counts = {field: grown[field] for field in family.prefix_counts if field in grown}
    made = _made_anew({**config, **counts}, family, len(types))
    return None if made is None else made == types


def spread_periods(
    depth: int, new_layers: int | None, rule: Rule | None, *, copies: bool
) -> list[int]:
    """Choose gaps so that a rule makes of every kept block of the grown stack what it is.

    New blocks become what the rule makes of their places, and stand as evenly over the depth as
    the rule leaves room for.

    Args:
        depth: Number of blocks of the base.
        new_layers: Number of new blocks; by default the most that is no more than half of the
            base's, or else the fewest.
        rule: What blocks are; ``None`` where no rule is known.
        copies: Whether new blocks may stand above the last block of their type.

    Returns:
        One gap per new block.

    Raises:
        DeepenError: There is no pattern, or it does not take that many new blocks.
    """
    base = rule(depth) if rule else None
    if rule is None or base is None or len(set(base)) < 2:
        raise DeepenError(
            "Placement 'periods' repeats a pattern of block types, and the base has none that a "
            "rule makes; choose another placement."
        )

    def places(new: int) -> list[int] | None:
        target = rule(depth + new)
        return _embedded(base, target, last=not copies) if target else None

    wanted = new_layers
    if wanted is None:
        half = max(1, depth // 2)
        tried = [*range(half, 0, -1), *range(half + 1, depth + 1)]
        wanted = next((new for new in tried if places(new)), 1)
    if wanted < 1:
        raise DeepenError(f"There must be at least 1 new layer, not {wanted}.")
    kept = places(wanted)
    if kept is None:
        fitting = [new for new in range(1, 2 * depth + 1) if places(new)]
        near = sorted(sorted(fitting, key=lambda new: abs(new - wanted))[:2])
        raise DeepenError(
            f"Placement 'periods' keeps the pattern of block types with whole periods, and "
            f"{wanted} new layers are none; "
            + (f"ask for {' or '.join(map(str, near))}." if near else "choose another placement.")
        )
    taken = set(kept)
    below = [sum(place < index for place in kept) - 1 for index in range(depth + wanted)]
    return [below[index] for index in range(depth + wanted) if index not in taken]


def _embedded(kept: Sequence[object], target: Sequence[object], *, last: bool) -> list[int] | None:
    """Find places of kept blocks in a deeper stack whose types they have.

    The first block of every type stays the first, and with ``last`` the last one the last, so that
    every new block has one of its type below it, and above it. Of all such places those nearest to
    an even spread are taken, by dynamic programming.

    Returns:
        The place of each kept block, rising; ``None`` if there are none such.
    """
    if set(kept) != set(target):
        return None
    ends = [(_first_index(kept), _first_index(target))]
    if last:
        ends.append((_last_index(kept), _last_index(target)))
    stretch = (len(target) - last) / max(1, len(kept) - last)
    # Cheapest way to place the first blocks below each place, and where that puts the latest.
    costs, choices = [0.0] * (len(target) + 1), []
    for index, kind in enumerate(kept):
        best, chosen, after, choice = float("inf"), -1, [float("inf")], [-1]
        for place, made in enumerate(target):
            cost = costs[place] + (place - index * stretch) ** 2
            if made == kind and cost < best:
                ended = all((of(kind) == index) == (to(kind) == place) for of, to in ends)
                best, chosen = (cost, place) if ended else (best, chosen)
            after.append(best)
            choice.append(chosen)
        costs = after
        choices.append(choice)
    if costs[-1] == float("inf"):
        return None
    places, end = list[int](), len(target)
    for choice in reversed(choices):
        end = choice[end]
        places.append(end)
    return places[::-1]


def _first_index(types: Sequence[object]) -> Callable[[object], int]:
    """Return what finds the first block of a type."""
    return lambda kind: types.index(kind)


def _last_index(types: Sequence[object]) -> Callable[[object], int]:
    """Return what finds the last block of a type."""
    return lambda kind: len(types) - 1 - [*reversed(types)].index(kind)
