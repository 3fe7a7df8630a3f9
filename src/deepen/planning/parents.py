"""Which two blocks a new block is made from, where neighbours differ.

Hybrids mix blocks of several kinds: attention and Mamba, dense and mixture of experts, sliding and
full attention. A new block in a gap is made from the nearest two blocks around it that are of the
same kind and type, and takes their type.

Where a rule on the index says what a block is made of, and no config field can override it (Jamba:
attention in every eighth block), a new block is what the rule makes of its place, and kept blocks
must stay what they are: such stacks grow by whole periods of the rule. Where types are listed but
follow a rule (``planning/pattern.py``), a growth can be asked to follow it too.
"""

from collections import Counter
from collections.abc import Sequence

from deepen.base.anatomy import Anatomy
from deepen.base.anatomy.family import Config
from deepen.common.errors import DeepenError
from deepen.planning.pattern import Rule
from deepen.planning.plan import Insert, Keep, Plan

_Types = Sequence[tuple[object, ...]]


def with_parents(plan: Plan, anatomy: Anatomy, config: Config, rule: Rule | None = None) -> Plan:
    """Give every new block between two unlike neighbours two parents that are alike.

    Of all pairs of like blocks around a gap, the one with the fewest blocks between is taken; of
    two such pairs the one that is like the block below. Where no two blocks around a gap are of
    the same type, two of the same kind will do, and the new block takes the type of the nearer.

    Args:
        plan: Where new blocks go.
        anatomy: The base's blocks.
        config: The base's config with the family's defaults filled in.
        rule: What the grown stack must follow, if anything.

    Raises:
        DeepenError: No two blocks around a gap have the same tensors, or a rule on the index would
            make something else of a kept block.
    """
    types = [
        (id(kind), *map(_hashable, rest))
        for kind, rest in zip(anatomy.blocks, anatomy.types, strict=True)
    ]
    family = anatomy.family
    if family.pattern:
        base = family.pattern(config)
        grown = family.pattern({**config, family.depth_field: plan.depth})
        return _by_rule(plan, types, base, grown)
    if rule and (made := rule(anatomy.depth)) and (deeper := rule(plan.depth)):
        return _by_rule(plan, types, made, deeper)
    blocks = [b if isinstance(b, Keep) else _by_type(b, anatomy, types) for b in plan.blocks]
    return Plan(plan.base_depth, tuple(blocks))


def _hashable(entry: object) -> object:
    """Return a type as a config lists it, for example ``[["global"], 1]``, as one that hashes."""
    return tuple(map(_hashable, entry)) if isinstance(entry, list | tuple) else entry


def _by_type(insert: Insert, anatomy: Anatomy, types: _Types) -> Insert:
    """Choose the parents of one new block."""
    below, above, kinds = insert.below, insert.above, anatomy.blocks
    if parents := _nearest(insert, types, range(anatomy.depth)):
        return Insert(*parents, insert.t)
    if kinds[below] is kinds[above]:
        return insert
    raise DeepenError(
        f"Blocks {below} ({kinds[below].kind}) and {above} ({kinds[above].kind}) have different "
        f"tensors, and no two blocks around them are alike; choose another placement than the gap "
        f"above block {below}, or a method that copies (llama-pro)."
    )


def _nearest(insert: Insert, types: _Types, allowed: Sequence[int]) -> tuple[int, int] | None:
    """Return the nearest two allowed blocks around a new one that are of the same type."""
    # Of every type the last block below and the first above; no other pair is nearer.
    lowers = {types[index]: index for index in allowed if index <= insert.below}
    uppers = {types[index]: index for index in reversed(allowed) if index >= insert.above}
    choices = [
        (uppers[kind] - lower, kind != types[insert.below], lower, uppers[kind])
        for kind, lower in lowers.items()
        if kind in uppers
    ]
    return min(choices)[2:] if choices else None


def _by_rule(plan: Plan, types: _Types, base: Sequence[object], grown: Sequence[object]) -> Plan:
    """Make every new block what a rule on the index makes of its place.

    Args:
        plan: Where new blocks go.
        types: Type of each block of the base.
        base: What the rule makes of each block of the base.
        grown: What it makes of each block of the grown stack.

    Raises:
        DeepenError: It makes something else of a kept block, or of a new one something that no
            blocks around it are.
    """
    for index, (block, wanted) in enumerate(zip(plan.blocks, grown, strict=True)):
        if isinstance(block, Keep) and base[block.source] != wanted:
            raise _shifted(plan, base, block.source, index)
    blocks = [
        block
        if isinstance(block, Keep)
        else _ruled(block, types, [index for index, made in enumerate(base) if made == wanted])
        for block, wanted in zip(plan.blocks, grown, strict=True)
    ]
    return Plan(plan.base_depth, tuple(_spread(blocks)))


def _ruled(insert: Insert, types: _Types, like: Sequence[int]) -> Insert:
    """Choose the parents of one new block among the blocks that the rule makes alike."""
    if insert.below == insert.above:
        under = [index for index in like if index <= insert.below]
        parents = (under[-1], under[-1]) if under else None
    else:
        parents = _nearest(insert, types, like)
    if parents is None:
        raise DeepenError(
            f"By the rule of this family's config.json a new block above block {insert.below} "
            f"would be of a kind that the blocks around it are not; choose another placement."
        )
    return Insert(*parents, insert.t)


def _shifted(plan: Plan, base: Sequence[object], source: int, index: int) -> DeepenError:
    """Say that a kept block would become something else, and what can be done."""
    depth = len(base)
    period = next(p for p in range(1, depth + 1) if base[p:] == base[: depth - p])
    # Gaps with a whole period on either side, so that every new block finds two parents.
    gaps = range(period - 1, depth - period)
    gap = min(gaps, key=lambda gap: abs(gap - plan.inserts[0].below)) if gaps else depth - 1
    where = f"--placement after:{','.join([str(gap)] * period)}"
    return DeepenError(
        f"This family's config.json says by a rule on their index what blocks are made of, and "
        f"block {source} would become something else at index {index}; insert whole periods of "
        f"{period} new blocks, for example {where}{'' if gaps else ' with --method llama-pro'}."
    )


def _spread(blocks: Sequence[Keep | Insert]) -> list[Keep | Insert]:
    """Put new blocks between the same two parents at even distances."""
    fused = [(b.below, b.above) for b in blocks if isinstance(b, Insert) and b.below != b.above]
    counts, seen = Counter(fused), Counter[tuple[int, int]]()
    result: list[Keep | Insert] = []
    for block in blocks:
        if isinstance(block, Insert) and (parents := (block.below, block.above)) in counts:
            seen[parents] += 1
            block = Insert(*parents, seen[parents] / (counts[parents] + 1))
        result.append(block)
    return result
