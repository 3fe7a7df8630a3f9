"""LLaMA PRO, block expansion. arXiv 2401.02415, section 3.2.

The base's L blocks form m groups; after each group stands a copy of its last block with the two
output projections zeroed, so that the grown model computes what the base computes. Where m does not
divide L the groups differ by one block. Any other placement works too, copies of the block below.
"""

from collections.abc import Iterator

from torch import Tensor

from deepen.anatomy import BlockAnatomy
from deepen.methods.base import Block, FusedOptions, Method, above_copied
from deepen.methods.blending import finished
from deepen.plans import Insert


def fuse(
    options: FusedOptions,
    below: Block,
    above: Block,
    anatomy: BlockAnatomy,
    insert: Insert,
    state: None,
) -> Iterator[tuple[str, Tensor]]:
    """Copy the block below, silencing every tensor that writes into the residual stream."""
    for name, spec in anatomy.block.items():
        yield name, finished(options, spec, below[name])


METHOD = Method(
    name="llama-pro",
    summary="copy of the block below, output projections zeroed",
    reference="arXiv:2401.02415",
    place=above_copied("uniform"),
    fuse=fuse,
    options=FusedOptions,
    preserves_function=True,
)
