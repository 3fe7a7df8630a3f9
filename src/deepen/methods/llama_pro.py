"""LLaMA PRO, block expansion. arXiv 2401.02415, section 3.2.

The base's L blocks form m groups; after each group stands a copy of its last block with the two
output projections zeroed, so that the grown model computes what the base computes. Where m does not
divide L the groups differ by one block. Any other placement works too, copies of the block below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deepen.methods.method import Gap, Method, above_copied
from deepen.methods.options import FusedOptions

if TYPE_CHECKING:
    from torch import Tensor


def fuse(options: FusedOptions, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Copy the block below."""
    for name in gap.tensors:
        yield name, gap.below[name]


METHOD = Method(
    name="llama-pro",
    summary="copy of the block below, output projections zeroed",
    reference="arXiv:2401.02415",
    place=above_copied("uniform"),
    fuse=fuse,
    copies=True,
    options=FusedOptions,
)
