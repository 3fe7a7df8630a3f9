"""Avg-DeUS, the plain mean. arXiv 2508.08011 (its ablation of OpT-DeUS, there also "Average").

One new block in each gap of the top half; every tensor is the mean of its two neighbours' and
nothing is zeroed, so the function changes. With several blocks in a gap the j-th of m is
(1 - t)·A + t·B at t = j / (m + 1).
"""

from collections.abc import Iterator

from torch import Tensor

from deepen.anatomy import BlockAnatomy
from deepen.methods.base import Block, Method, Options, between, interpolate


def fuse(
    options: Options, below: Block, above: Block, anatomy: BlockAnatomy, t: float, state: None
) -> Iterator[tuple[str, Tensor]]:
    """Interpolate every tensor, ``[out, in]`` → ``[out, in]``."""
    for name in anatomy.block:
        yield name, interpolate(below[name], above[name], t)


METHOD = Method(
    name="avg-deus",
    summary="plain mean of the two neighbours",
    reference="arXiv:2508.08011",
    place=between("top"),
    fuse=fuse,
)
