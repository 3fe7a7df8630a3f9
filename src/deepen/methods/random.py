"""Random weights with zeroed outputs: the control that every initialisation must beat.

Each weight is normal with the mean square of its two parents'; everything else is their mean.
Whatever a method learns faster than this, it owes to the weights that it starts from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepen.anatomy import BlockAnatomy
from deepen.methods.base import Block, FusedOptions, Method, Progress, between
from deepen.methods.blending import finished, interpolate, restores, with_row_norms
from deepen.plans import Insert

if TYPE_CHECKING:
    from deepen.base import Base


def prepare(
    options: FusedOptions,
    base: "Base",
    inserts: Sequence[Insert],
    seed: int,
    device: torch.device,
    progress: Progress,
) -> int:
    """Hand the seed on."""
    return seed


def fuse(
    options: FusedOptions,
    below: Block,
    above: Block,
    anatomy: BlockAnatomy,
    insert: Insert,
    state: int,
) -> Iterator[tuple[str, Tensor]]:
    """Draw every weight ``[out, in]`` anew."""
    for name, spec in anatomy.block.items():
        a, b = below[name].float(), above[name].float()
        fused = interpolate(a, b, insert.t)
        if spec.is_weight:
            scale = interpolate(a.square().mean(), b.square().mean(), insert.t).sqrt()
            fused = scale * _noise(fused.shape, f"{state} {insert} {name}").to(a.device)
        if restores(options, spec):
            fused = with_row_norms(fused, interpolate(a.norm(dim=1), b.norm(dim=1), insert.t))
        yield name, finished(options, spec, fused)


def _noise(shape: torch.Size, what: str) -> Tensor:
    """Return standard normal numbers that depend on nothing but what they are for."""
    digest = hashlib.sha256(what.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


METHOD = Method(
    name="random",
    summary="control: random weights of the parents' size, output projections zeroed",
    reference="control",
    place=between("top"),
    fuse=fuse,
    options=FusedOptions,
    preserves_function=True,
    prepare=prepare,
)
