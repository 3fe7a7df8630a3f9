"""Avg-DeUS, the plain mean. arXiv 2508.08011 (its ablation of OpT-DeUS, there also "Average").

One new block in each gap of the top half; every tensor is the mean of its two neighbours' and
nothing is zeroed, so the function changes. With several blocks in a gap the j-th of m is
(1 - t)·A + t·B at t = j / (m + 1). ``output_scale=0`` is the ablation that the paper lacks: the
mean with zeroed outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from deepen.methods.mean import blended
from deepen.methods.method import Gap, Method, between
from deepen.methods.options import LARGEST, BlendedOptions

if TYPE_CHECKING:
    from torch import Tensor


class Options(BlendedOptions):
    """Options of Avg-DeUS."""

    output_scale: float = Field(default=1.0, ge=0, le=LARGEST)
    """What is kept of the output projections: `1` is the paper's, `0` keeps the base's function."""


def fuse(options: Options, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Interpolate every tensor, ``[out, in]`` → ``[out, in]``."""
    for name, spec in gap.tensors.items():
        yield name, blended(options, spec, gap.below[name], gap.above[name], gap.t)


METHOD = Method(
    name="avg-deus",
    summary="plain mean of the two neighbours",
    reference="arXiv:2508.08011",
    place=between("top"),
    fuse=fuse,
    options=Options,
)
