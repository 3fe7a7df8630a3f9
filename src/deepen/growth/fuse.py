"""Walk a plan: yield the grown model's tensors, a few in memory at a time."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deepen.base.anatomy import BlockAnatomy, Family, Role, TensorSpec
from deepen.base.checkpoint import DTYPES, TensorInfo
from deepen.base.model import OVERFLOWS, Model
from deepen.base.weights.values import is_finite, magnitude
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.common.seeds import generator_for
from deepen.common.system import return_freed_memory
from deepen.methods.method import Gap, Method, Prepared, Stack
from deepen.methods.options import FusedOptions, Options
from deepen.planning.plan import Insert, Plan
from deepen.records.growth import GrowRequest, Scores, Trains

# Roles that size what the output projections learn from.
_FEATURES: frozenset[Role] = frozenset({"value", "up"})


@dataclass(frozen=True)
class Growth:
    """Everything that determines the grown model's bytes."""

    base: Model
    """The model to grow."""
    request: GrowRequest
    """What was asked for."""
    plan: Plan
    """The new stack."""
    method: Method
    """How new blocks are made."""
    options: Options
    """The method's own options."""
    device: torch.device
    """Where new blocks are computed."""
    progress: Progress = silent
    """Called while the method looks at the whole stack."""
    scores: Scores | None = None
    """What new blocks were placed by, if that was measured."""

    @property
    def trains(self) -> Trains:
        """What trains after growing."""
        return self.method.trained(self.options)

    @property
    def layout(self) -> dict[str, TensorInfo]:
        """Name, dtype and shape of every tensor of the grown model, bottom to top."""
        return layout(self.base, self.plan)

    @cached_property
    def prepared(self) -> Prepared:
        """What the method found in the whole stack; it looks when this is first asked for."""
        if self.method.prepare is None:
            return Prepared()
        stack = Stack(self.base, self.plan.inserts, self.request.seed, self.device, self.progress)
        return self.method.prepare(self.options, stack)


def origins(base: Model, plan: Plan) -> dict[str, str]:
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


def new_tensors(family: Family, blocks: Iterable[int], names: Iterable[str]) -> list[str]:
    """Name the tensors of some blocks.

    Args:
        family: The model's.
        blocks: Indices of its new blocks.
        names: All of its tensors.
    """
    new = set(blocks)
    return [name for name in names if (place := family.split(name)) and place[0] in new]


def layout(base: Model, plan: Plan) -> dict[str, TensorInfo]:
    """Say what tensors the grown model has, before any is made.

    A new block takes the dtypes of its nearest parent.
    """
    return {name: base.source.infos[origin] for name, origin in origins(base, plan).items()}


def kept(growth: Growth) -> dict[str, str]:
    """Map the names of the grown model's tensors that are the base's own to the base's names."""
    blocks, family = growth.plan.blocks, growth.base.family

    def is_kept(name: str) -> bool:
        place = family.split(name)
        block = blocks[place[0]] if place and place[0] < len(blocks) else None
        return (
            place is None
            or not isinstance(block, Insert)
            or _is_buffer(growth.base, block, place[1])
        )

    names = origins(growth.base, growth.plan)
    return {name: origin for name, origin in names.items() if is_kept(name)}


def grown_tensors(
    growth: Growth, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor]]:
    """Yield the wanted tensors of the grown model, on the CPU, in their stored dtype.

    Args:
        growth: What to make.
        wanted: Which tensors are still needed; blocks without any are not computed.

    Raises:
        DeepenError: A source block holds NaN or Inf, or the method made an unusable tensor.
    """
    base, blocks, family = growth.base, growth.plan.blocks, growth.base.family
    own, made, unsound = kept(growth), set(), list[str]()
    # Bottom to top, so that shards are finished one after the other.
    for name in origins(base, growth.plan):
        if not wanted(name):
            continue
        if name in own:
            tensor = base.source.load(own[name])
            if not magnitude(tensor) <= OVERFLOWS:
                unsound.append(own[name])
            yield name, tensor
            continue
        place = family.split(name)
        assert place is not None
        block = blocks[place[0]]
        assert isinstance(block, Insert)
        if place[0] not in made:
            made.add(place[0])
            make = new_block if base.source.quantisation is None else copied_block
            for suffix, tensor in make(growth, block):
                if wanted(family.name(place[0], suffix)):
                    yield family.name(place[0], suffix), tensor
            return_freed_memory()
    if unsound:
        more = f" and {len(unsound) - 3} more" if len(unsound) > 3 else ""
        warnings.warn(
            f"{base.source.name} is not sound: {', '.join(unsound[:3])}{more} "
            f"hold NaN, Inf or values above {OVERFLOWS:.2g}, and are kept as they are; such a "
            f"model computes no numbers.",
            stacklevel=2,
        )


def _is_buffer(base: Model, insert: Insert, suffix: str) -> bool:
    """Whether a new block's tensor is no parameter and comes from its parent as it is."""
    return base.anatomy.blocks[insert.nearest].stored[suffix].is_buffer


def new_block(growth: Growth, insert: Insert) -> Iterator[tuple[str, Tensor]]:
    """Make one new block, silence and scale it as options ask, and hold it to what a block must be.

    Yields:
        Name of a stored tensor inside the block, and the tensor on the CPU in the nearest parent's
        dtype.

    Raises:
        DeepenError: The method left out or invented a tensor, or made one of wrong shape or with
            NaN or Inf.
    """
    base, anatomy = growth.base, growth.base.anatomy.blocks[insert.nearest]
    who, where = _said(growth, insert)
    parts = Counter(place.suffix for place in anatomy.places.values())
    unfinished: dict[str, Tensor] = {}
    for name, tensor in logical_tensors(growth, insert):
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


def check_copies(base: Model, method: Method, options: Options) -> None:
    """Hold a growth of a quantised base to copying, since its weights allow no arithmetic.

    Raises:
        DeepenError: The method, or an option, computes new weights.
    """
    if (quantisation := base.source.quantisation) is None:
        return
    said = f"{base.source.name} is quantised ({quantisation.method})"
    if not method.copies:
        raise DeepenError(
            f"{said}, and {method.name} computes new weights from its blocks, for which it needs "
            f"the unquantised ones; give those, or copy blocks with --method llama-pro."
        )
    if options.computing:
        raise DeepenError(
            f"{said}, and {options.computing[0]} computes new weights, for which it takes the "
            f"unquantised ones; give those, or leave the option out."
        )


def copied_block(growth: Growth, insert: Insert) -> Iterator[tuple[str, Tensor]]:
    """Copy a block as it is stored, silent tensors with their values at zero under their scales.

    Yields:
        Name of a stored tensor inside the block, and the tensor.

    Raises:
        DeepenError: The block holds NaN or Inf, or silence cannot be stored exactly.
    """
    base, anatomy = growth.base, growth.base.anatomy.blocks[insert.nearest]
    silent: dict[str, list[str]] = {}
    for name, spec in anatomy.block.items():
        if growth.options.silences(spec):
            silent.setdefault(anatomy.places[name].suffix, []).append(name)
    for suffix in dict.fromkeys(place.suffix for place in anatomy.places.values()):
        full = base.family.name(insert.nearest, suffix)
        stored = base.source.load(full)
        if not is_finite(base.source.value_of(full, stored)):
            raise DeepenError(
                f"Source block {insert.nearest} holds NaN or Inf in tensor {full!r}; "
                f"new blocks made from it would be broken, so give it a sound checkpoint."
            )
        if suffix in silent:
            stored = stored.clone()
        for name in silent.get(suffix, ()):
            place, value = anatomy.places[name], anatomy.block[name].silent
            assert value is not None
            place.view(stored, anatomy.sizes).fill_(value)
            made = place.read(base.source.value_of(full, stored), anatomy.sizes)
            if not bool((made == value).all()):
                raise DeepenError(
                    f"{value:g} cannot be stored exactly in tensor {full!r} with its scales, so "
                    f"that a copy would not be silent; give the unquantised checkpoint."
                )
        yield suffix, stored


def logical_tensors(growth: Growth, insert: Insert) -> Iterator[tuple[str, Tensor]]:
    """Yield what the method makes of a new block, silenced and scaled as options ask.

    Yields:
        Name of a logical tensor inside the block, and the tensor as the method made it.

    Raises:
        DeepenError: The method left out or invented a tensor.
    """
    base, options, anatomy = growth.base, growth.options, growth.base.anatomy.blocks[insert.nearest]
    who, where = _said(growth, insert)
    silent_ones = {n: spec for n, spec in anatomy.block.items() if options.silences(spec)}
    missing = {n: spec for n, spec in anatomy.block.items() if n not in silent_ones}
    below, above = (
        base.block(index, growth.device, fused=insert.below != insert.above)
        for index in (insert.below, insert.above)
    )
    gap = Gap(below, above, anatomy, insert, dict(missing), growth.prepared.state)
    for name, tensor in growth.method.fuse(options, gap):
        if name not in missing:
            raise DeepenError(f"{who} made tensor {name!r} twice or unasked {where}.")
        yield name, _scaled(options, missing.pop(name), tensor)
    if missing:
        raise DeepenError(f"{who} did not make tensor {next(iter(missing))!r} {where}.")
    for name, spec in silent_ones.items():
        yield name, _silenced(growth, insert, name, spec)


def _silenced(growth: Growth, insert: Insert, name: str, spec: TensorSpec) -> Tensor:
    """Return a tensor that adds nothing to the stream, or next to nothing where options ask."""
    assert spec.silent is not None
    base, options = growth.base, growth.options
    shape = _shape(base, insert.nearest, base.anatomy.blocks[insert.nearest], name)
    silence = torch.full(shape, spec.silent)
    noise = options.output_noise if isinstance(options, FusedOptions) else 0.0
    if not (noise and spec.is_weight and spec.silent == 0):
        return silence
    parent = base.block(insert.nearest, silence.device)[name].float()
    generator = generator_for(f"{growth.request.seed} {insert} {name}")
    return (
        noise
        * parent.square().mean(dtype=torch.float64).sqrt()
        * torch.randn(shape, generator=generator)
    )


def _said(growth: Growth, insert: Insert) -> tuple[str, str]:
    """Name the method and the gap, for errors."""
    return (
        f"Method {growth.method.name!r}",
        f"between blocks {insert.below} and {insert.above}",
    )


def _shape(base: Model, index: int, anatomy: BlockAnatomy, name: str) -> torch.Size:
    """Return the shape of a logical tensor."""
    place = anatomy.places[name]
    stored = torch.empty(
        base.source.infos[base.family.name(index, place.suffix)].shape, device="meta"
    )
    return place.read(stored, anatomy.sizes).shape


def _scaled(options: Options, spec: TensorSpec, made: Tensor) -> Tensor:
    """Scale an output, or what outputs learn from, as options ask."""
    if not isinstance(options, FusedOptions):
        return made
    if spec.silent is not None:
        if options.output_scale == 1:
            return made
        return spec.silent + options.output_scale * (made.float() - spec.silent)
    if spec.role in _FEATURES and options.feature_scale != 1:
        return options.feature_scale * made.float()
    return made
