"""Walk a plan: yield the grown model's tensors, a few in memory at a time."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepen.base import Base
from deepen.checkpoint import DTYPES, TensorInfo, is_finite
from deepen.errors import DeepenError
from deepen.methods.base import Method, Options, Progress, silent
from deepen.plans import Insert, Plan


@dataclass(frozen=True)
class Growth:
    """Everything that determines the grown model's bytes."""

    base: Base
    """The model to grow."""
    plan: Plan
    """The new stack."""
    placement: str | None
    """The placement as it was asked for; ``None`` is the method's own."""
    method: Method
    """How new blocks are made."""
    options: Options
    """The method's own options."""
    seed: int
    """Seed of everything random in the method."""
    device: torch.device
    """Where new blocks are computed."""

    @property
    def layout(self) -> dict[str, TensorInfo]:
        """Name, dtype and shape of every tensor of the grown model, bottom to top."""
        return layout(self.base, self.plan)


def origins(base: Base, plan: Plan) -> dict[str, str]:
    """Map the name of every tensor of the grown model to the base's tensor that it is laid out as.

    For everything that is kept this is the tensor that it must equal; a new block's tensors are
    laid out as those of its nearest parent.
    """
    family, anatomy = base.family, base.anatomy
    embeddings, *rest = anatomy.outside
    names = {embeddings: embeddings}
    for index, parent in enumerate(plan.type_parents):
        for suffix in anatomy.blocks[parent].stored:
            names[family.name(index, suffix)] = family.name(parent, suffix)
    for name, (after, suffix) in anatomy.trailing.items():
        names[family.name(plan.depth + after, suffix)] = name
    return names | {name: name for name in rest}


def layout(base: Base, plan: Plan) -> dict[str, TensorInfo]:
    """Say what tensors the grown model has, before any is made.

    A new block takes the dtypes of its nearest parent.
    """
    return {name: base.source.infos[origin] for name, origin in origins(base, plan).items()}


def grown_tensors(
    growth: Growth,
    wanted: Callable[[str], bool] = lambda name: True,
    progress: Progress = silent,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the wanted tensors of the grown model, on the CPU, in their stored dtype.

    Args:
        growth: What to make.
        wanted: Which tensors are still needed; blocks without any are not computed.
        progress: Called while a method looks at the whole stack.

    Raises:
        DeepenError: A source block holds NaN or Inf, or the method made an unusable tensor.
    """
    base, blocks, family = growth.base, growth.plan.blocks, growth.base.family
    state, prepared = None, growth.method.prepare is None
    made = set()
    # Bottom to top, so that shards are finished one after the other.
    for name, origin in origins(base, growth.plan).items():
        if not wanted(name):
            continue
        place = family.split(name)
        block = blocks[place[0]] if place and place[0] < len(blocks) else None
        if place is None or not isinstance(block, Insert) or _is_buffer(base, block, place[1]):
            yield name, base.source.load(origin)
        elif place[0] not in made:
            made.add(place[0])
            if not prepared:
                state, prepared = _prepare(growth, progress), True
            for suffix, tensor in new_block(growth, block, state):
                if wanted(family.name(place[0], suffix)):
                    yield family.name(place[0], suffix), tensor


def _is_buffer(base: Base, insert: Insert, suffix: str) -> bool:
    """Whether a new block's tensor is no parameter and comes from its parent as it is."""
    return base.anatomy.blocks[insert.nearest].stored[suffix].is_buffer


def _prepare(growth: Growth, progress: Progress) -> object:
    """Let the method look at the whole stack."""
    assert growth.method.prepare is not None
    inserts = growth.plan.inserts
    return growth.method.prepare(
        growth.options, growth.base, inserts, growth.seed, growth.device, progress
    )


def new_block(growth: Growth, insert: Insert, state: object) -> Iterator[tuple[str, Tensor]]:
    """Make one new block and hold it to what a block must be.

    Yields:
        Name of a stored tensor inside the block, and the tensor on the CPU in the nearest parent's
        dtype.

    Raises:
        DeepenError: The method left out or invented a tensor, or made one of wrong shape or with
            NaN or Inf.
    """
    base, anatomy = growth.base, growth.base.anatomy.blocks[insert.nearest]
    who = f"Method {growth.method.name!r}"
    where = f"between blocks {insert.below} and {insert.above}"
    below, above = base.block(insert.below, growth.device), base.block(insert.above, growth.device)
    missing = dict.fromkeys(anatomy.block)
    parts = Counter(place.suffix for place in anatomy.places.values())
    unfinished: dict[str, Tensor] = {}
    for name, tensor in growth.method.fuse(growth.options, below, above, anatomy, insert, state):
        if name not in missing:
            raise DeepenError(f"{who} made tensor {name!r} twice or unasked {where}.")
        del missing[name]
        place = anatomy.places[name]
        info = base.source.infos[base.family.name(insert.nearest, place.suffix)]
        value = tensor.to("cpu", DTYPES[info.dtype])
        if not is_finite(value):
            raise DeepenError(
                f"{who} made NaN or Inf in {name!r} {where}: the weights are too large for "
                f"{info.dtype}, or too extreme for its options."
            )
        stored = unfinished.pop(place.suffix, value)
        if stored is value and not place.is_whole:
            stored = torch.empty(info.shape, dtype=value.dtype)
        shape = info.shape if place.is_whole else place.read(stored, anatomy.sizes).shape
        if value.shape != shape:
            raise DeepenError(
                f"{who} made {name!r} {where} of shape {tuple(value.shape)}, not {tuple(shape)}."
            )
        if not place.is_whole:
            place.write(value, stored, anatomy.sizes)
        parts[place.suffix] -= 1
        if parts[place.suffix]:
            unfinished[place.suffix] = stored
        else:
            yield place.suffix, stored
    if missing:
        raise DeepenError(f"{who} did not make tensor {next(iter(missing))!r} {where}.")
