"""Which two blocks a new block is made from, where neighbours differ.

Hybrids mix blocks of several kinds: attention and Mamba, dense and mixture of experts, sliding and
full attention. A new block in a gap is made from the nearest two blocks around it that are of the
same kind and type, and takes their type.
"""

from deepen.anatomy import Anatomy
from deepen.errors import DeepenError
from deepen.plans import Insert, Keep, Plan


def paired(plan: Plan, anatomy: Anatomy) -> Plan:
    """Give every new block between two unlike neighbours two parents that are alike.

    Of all pairs of like blocks around a gap, the one with the fewest blocks between is taken; of
    two such pairs the one that is like the block below. Where no two blocks around a gap are of
    the same type, two of the same kind will do, and the new block takes the type of the nearer.

    Raises:
        DeepenError: No two blocks around a gap have the same tensors.
    """
    blocks = [
        _pair(block, anatomy) if isinstance(block, Insert) and block.below != block.above else block
        for block in plan.blocks
    ]
    return Plan(plan.base_depth, tuple(blocks))


def _pair(insert: Insert, anatomy: Anatomy) -> Keep | Insert:
    """Choose the parents of one new block."""
    below, above = insert.below, insert.above
    kinds = anatomy.blocks
    types = [(id(kind), *entries) for kind, entries in zip(kinds, anatomy.types, strict=True)]
    if types[below] == types[above]:
        return insert
    pairs = [
        (upper - lower, types[lower] != types[below], lower, upper)
        for lower in range(below + 1)
        for upper in range(above, anatomy.depth)
        if types[lower] == types[upper]
    ]
    if pairs:
        _, _, lower, upper = min(pairs)
        return Insert(lower, upper, insert.t)
    if kinds[below] is kinds[above]:
        return insert
    raise DeepenError(
        f"Blocks {below} ({kinds[below].kind}) and {above} ({kinds[above].kind}) have different "
        f"tensors, and no two blocks around them are alike; choose another placement than the gap "
        f"above block {below}, or a method that copies (llama-pro)."
    )
