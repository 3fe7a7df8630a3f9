"""Walk a plan: yield the grown model's tensors, a few in memory at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepen.base import Base
from deepen.checkpoint import DTYPES, TensorInfo, is_finite
from deepen.errors import DeepenError
from deepen.methods.base import Method, Options, Progress, silent
from deepen.plans import Insert, Keep, Plan


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


def layout(base: Base, plan: Plan) -> dict[str, TensorInfo]:
    """Say what tensors the grown model has, before any is made.

    A new block takes the dtypes of its nearest parent.
    """
    embeddings, *rest = base.anatomy.outside
    infos = {embeddings: base.source.infos[embeddings]}
    for index, parent in enumerate(plan.type_parents):
        for suffix in base.anatomy.block:
            infos[base.family.name(index, suffix)] = base.source.infos[
                base.family.name(parent, suffix)
            ]
    infos.update({name: base.source.infos[name] for name in rest})
    return infos


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
    base, plan = growth.base, growth.plan
    for name in base.anatomy.outside:
        if wanted(name):
            yield name, base.source.load(name)
    state, prepared = None, growth.method.prepare is None
    for index, block in enumerate(plan.blocks):
        names = {suffix: base.family.name(index, suffix) for suffix in base.anatomy.block}
        if not any(wanted(name) for name in names.values()):
            continue
        if isinstance(block, Keep):
            for suffix, name in names.items():
                if wanted(name):
                    yield name, base.source.load(base.family.name(block.source, suffix))
            continue
        if not prepared:
            state, prepared = _prepare(growth, progress), True
        for suffix, tensor in new_block(growth, block, state):
            if wanted(names[suffix]):
                yield names[suffix], tensor


def _prepare(growth: Growth, progress: Progress) -> object:
    """Let the method look at the whole stack."""
    assert growth.method.prepare is not None
    blocks = [growth.base.block(i, growth.device) for i in range(growth.base.depth)]
    return growth.method.prepare(growth.options, blocks, growth.base.anatomy, growth.seed, progress)


def new_block(growth: Growth, insert: Insert, state: object) -> Iterator[tuple[str, Tensor]]:
    """Make one new block and hold it to what a block must be.

    Yields:
        Tensor name inside the block, and the tensor on the CPU in the nearest parent's dtype.

    Raises:
        DeepenError: The method left out or invented a tensor, or made one of wrong shape or with
            NaN or Inf.
    """
    base, anatomy, who = growth.base, growth.base.anatomy, f"Method {growth.method.name!r}"
    where = f"between blocks {insert.below} and {insert.above}"
    below, above = base.block(insert.below, growth.device), base.block(insert.above, growth.device)
    missing = dict.fromkeys(anatomy.block)
    for suffix, tensor in growth.method.fuse(
        growth.options, below, above, anatomy, insert.t, state
    ):
        if suffix not in missing:
            raise DeepenError(f"{who} made tensor {suffix!r} twice or unasked {where}.")
        del missing[suffix]
        info = base.source.infos[base.family.name(insert.nearest, suffix)]
        stored = tensor.to("cpu", DTYPES[info.dtype])
        if tuple(stored.shape) != info.shape:
            raise DeepenError(
                f"{who} made {suffix!r} {where} of shape {tuple(stored.shape)}, not {info.shape}."
            )
        if not is_finite(stored):
            raise DeepenError(
                f"{who} made NaN or Inf in {suffix!r} {where}: the weights are too large for "
                f"{info.dtype}, or too extreme for its options."
            )
        yield suffix, stored
    if missing:
        raise DeepenError(f"{who} did not make tensor {next(iter(missing))!r} {where}.")
