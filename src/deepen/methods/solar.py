"""SOLAR, depth up-scaling (DUS). arXiv 2312.15166, section 2.

Two copies of the L-block base, the first without its last d blocks, the second without its first d:
blocks 0..L-d-1, then d..L-1. That is L + N blocks for d = (L - N) / 2. The function changes and
everything trains. Of each block that appears twice the first appearance counts as kept and the
second as new.
"""

from collections.abc import Iterator

from torch import Tensor

from deepen.anatomy import BlockAnatomy
from deepen.errors import DeepenError
from deepen.methods.base import Block, Method, Options, Request
from deepen.plans import Insert, Keep, Plan


def place(request: Request) -> Plan:
    """Stack the two truncated copies.

    Without ``new_layers``, N is half of L, or one less where d would not be whole.

    Raises:
        DeepenError: d would not be whole or not lie in the base, or a placement was asked for.
    """
    depth = request.depth
    if request.placement is not None or request.per_gap != 1:
        raise DeepenError("SOLAR places blocks by its own rule; leave out the placement.")
    new = request.new_layers
    if new is None:
        new = max(1, depth // 2)
        new -= (depth - new) % 2
        new = new or 2
    if not 1 <= new <= depth:
        raise DeepenError(f"SOLAR adds 1 to {depth} layers to {depth} blocks, not {new}.")
    if (depth - new) % 2:
        near = new - 1 if new > 1 else new + 1
        raise DeepenError(
            f"SOLAR cuts d = (L - N) / 2 blocks from each copy, which is not whole for "
            f"L = {depth}, N = {new}; ask for {near} new layers."
        )
    overlap = (depth - new) // 2
    first: list[Keep | Insert] = [Keep(i) for i in range(depth - overlap)]
    second = [Insert(i, i, 0.0) if i < depth - overlap else Keep(i) for i in range(overlap, depth)]
    return Plan(depth, tuple(first + second))


def fuse(
    options: Options,
    below: Block,
    above: Block,
    anatomy: BlockAnatomy,
    insert: Insert,
    state: None,
) -> Iterator[tuple[str, Tensor]]:
    """Copy the block below."""
    for name in anatomy.block:
        yield name, below[name]


METHOD = Method(
    name="solar",
    summary="plain copies, two overlapping runs of the base",
    reference="arXiv:2312.15166",
    place=place,
    fuse=fuse,
    trains="everything",
)
