"""Random weights with zeroed outputs: the control that every initialisation must beat.

Each weight is normal with the mean square of its two parents'; everything else is their mean.
Whatever a method learns faster than this, it owes to the weights that it starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deepen.common.seeds import generator_for
from deepen.methods.mean import interpolate, with_mean_norms
from deepen.methods.method import Gap, Method, Prepared, Stack, between
from deepen.methods.options import FusedOptions

if TYPE_CHECKING:
    from torch import Tensor


def prepare(options: FusedOptions, stack: Stack) -> Prepared:
    """Hand the seed on."""
    return Prepared(stack.seed)


def fuse(options: FusedOptions, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Draw every weight ``[out, in]`` anew."""
    import torch

    for name, spec in gap.tensors.items():
        a, b = gap.below[name].float(), gap.above[name].float()
        fused = interpolate(a, b, gap.t)
        if spec.is_weight:
            # In float64, where the order in which threads add up does not reach float32's bits.
            a_size, b_size = (x.square().mean(dtype=torch.float64) for x in (a, b))
            scale = interpolate(a_size, b_size, gap.t).sqrt()
            generator = generator_for(f"{gap.state} {gap.insert} {name}")
            fused = scale * torch.randn(fused.shape, generator=generator).to(a.device)
        yield name, with_mean_norms(options, spec, fused, a, b, gap.t)


METHOD = Method(
    name="random",
    summary="control: random weights of the parents' size, output projections zeroed",
    reference="control",
    place=between("top"),
    fuse=fuse,
    options=FusedOptions,
    prepare=prepare,
)
