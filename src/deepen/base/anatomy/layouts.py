"""The same model under other names: in memory, and in other checkpoints of its family.

transformers holds all experts of a Mixtral in one tensor where the checkpoint has three for each
expert, and some checkpoints leave the model's prefix out of every name. Logical tensors are the
same in all of them, so that any layout can be put together from any other.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from deepen.base.anatomy.dissection import Anatomy

Load = Callable[[str], Tensor]
"""Loads a stored tensor by name."""


def assemble(name: str, shape: tuple[int, ...], want: Anatomy, have: Anatomy, load: Load) -> Tensor:
    """Return a tensor of one layout, made from the tensors of another.

    Args:
        name: The tensor's name in the layout ``want``.
        shape: Its shape there.
        want: The layout that is asked for.
        have: The layout of what ``load`` loads; of the same model.
        load: Loads a tensor by its name in ``have``.

    Raises:
        KeyError: ``have`` does not hold what it takes.
    """
    place = want.family.split(name)
    if place is None:
        return load(_outside(name, want, have))
    index, suffix = place
    target, source = want.blocks[index], have.blocks[index]
    if source.stored.get(suffix) == target.stored[suffix]:
        return load(have.family.name(index, suffix))
    tensor: Tensor | None = None
    for logical, where in target.places.items():
        if where.suffix == suffix:
            origin = source.places[source.names[target.block[logical].key]]
            part = origin.read(load(have.family.name(index, origin.suffix)), source.sizes)
            if where.is_whole:
                return part.contiguous()
            if tensor is None:
                tensor = torch.empty(shape, dtype=part.dtype, device=part.device)
            where.write(part, tensor, target.sizes)
    if tensor is None:
        raise KeyError(name)
    return tensor


def missing(name: str, want: Anatomy, have: Anatomy) -> list[str]:
    """Return the logical tensors that ``have`` lacks for a tensor of ``want``, by name."""
    place = want.family.split(name)
    if place is None:
        try:
            _outside(name, want, have)
        except KeyError:
            return [name]
        return []
    target, source = want.blocks[place[0]], have.blocks[place[0]]
    if target.stored[place[1]].is_buffer:
        return []
    return [
        want.family.name(place[0], logical)
        for logical, where in target.places.items()
        if where.suffix == place[1] and target.block[logical].key not in source.names
    ]


def _outside(name: str, want: Anatomy, have: Anatomy) -> str:
    """Return the name in ``have`` of a tensor outside all blocks.

    Raises:
        KeyError: There is none.
    """
    named = dict(zip(want.family.around, have.family.around, strict=True))
    named |= {**want.beside, **{stored: name for name, stored in have.beside.items()}}
    if named.get(name) not in have.outside:
        raise KeyError(name)
    return named[name]
