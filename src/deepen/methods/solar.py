"""SOLAR, depth up-scaling (DUS). arXiv 2312.15166, section 2.

Two copies of the L-block base, the first without its last d blocks, the second without its first d:
blocks 0..L-d-1, then d..L-1. That is L + N blocks for d = (L - N) / 2. The function changes and
everything trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deepen.methods.method import Gap, Method
from deepen.methods.options import Options
from deepen.planning.placement import overlapping_runs

if TYPE_CHECKING:
    from torch import Tensor


def fuse(options: Options, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Copy the block below."""
    for name in gap.tensors:
        yield name, gap.below[name]


METHOD = Method(
    name="solar",
    summary="plain copies, two overlapping runs of the base",
    reference="arXiv:2312.15166",
    place=overlapping_runs,
    fuse=fuse,
    copies=True,
    trains="everything",
)
