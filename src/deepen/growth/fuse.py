"""Walk a plan: yield the grown model's tensors, a few in memory at a time."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deepen.base.anatomy import BlockAnatomy, Role, TensorSpec
from deepen.base.checkpoint import DTYPES, TensorInfo
from deepen.base.model import OVERFLOWS, Model
from deepen.base.weights.values import is_finite, magnitude
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.common.seeds import generator_for
from deepen.common.system import return_freed_memory
from deepen.methods.method import Gap, Method, Prepared, Stack
from deepen.methods.options import FusedOptions, Options
from deepen.planning.layout import layout, origins
from deepen.planning.plan import Insert, Plan
from deepen.records.growth import GrowRequest, Scores, Trains


@dataclass(frozen=True)
class Copied:
    """A tensor of the grown model that is one of the base's, byte for byte."""

    origin: str
    """Its name in the base."""


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


class Soundness:
    """Holds what is taken over from the base to being finite, as each tensor passes."""

    def __init__(self, growth: Growth) -> None:
        """Look at nothing yet."""
        self._base, self._kept = growth.base, kept(growth)
        self._unsound: list[str] = []

    def see(self, name: str, origin: str, largest: float) -> None:
        """Take note of a tensor that was copied, and of the largest absolute value in it, or NaN.

        Raises:
            DeepenError: It is part of a new block, and holds NaN or Inf.
        """
        if name in self._kept:
            self._unsound += [] if largest <= OVERFLOWS else [origin]
        elif not math.isfinite(largest):
            place = self._base.family.split(origin)
            raise broken(place[0] if place else 0, origin)

    def warn(self) -> None:
        """Say which of the tensors that are kept as they are computes no numbers."""
        if unsound := self._unsound:
            more = f" and {len(unsound) - 3} more" if len(unsound) > 3 else ""
            warnings.warn(
                f"{self._base.source.name} is not sound: {', '.join(unsound[:3])}{more} "
                f"hold NaN, Inf or values above {OVERFLOWS:.2g}, and are kept as they are; such a "
                f"model computes no numbers.",
                stacklevel=3,
            )


def broken(block: int, name: str) -> DeepenError:
    """Say that a block is not one that new blocks can be made from."""
    return DeepenError(
        f"Source block {block} holds NaN or Inf in tensor {name!r}; "
        f"new blocks made from it would be broken, so give it a sound checkpoint."
    )


def grown_tensors(growth: Growth) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the grown model, on the CPU, in their stored dtype.

    Raises:
        DeepenError: A source block holds NaN or Inf, or the method made an unusable tensor.
    """
    sound = Soundness(growth)
    for name, made in parts(growth):
        tensor = growth.base.source.load(made.origin) if isinstance(made, Copied) else made
        if isinstance(made, Copied):
            sound.see(name, made.origin, magnitude(tensor))
        yield name, tensor
    sound.warn()


def parts(
    growth: Growth, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor | Copied]]:
    """Yield the wanted tensors of the grown model, on the CPU, or say whose copies they are.

    Args:
        growth: What to make.
        wanted: Which tensors are still needed; blocks without any are not computed.

    Raises:
        DeepenError: A source block holds NaN or Inf, or the method made an unusable tensor; what is
            copied is for the caller to look at, see ``Soundness``.
    """
    base, blocks, family = growth.base, growth.plan.blocks, growth.base.family
    own, made = kept(growth), set[int]()
    # Bottom to top, so that shards are finished one after the other.
    for name in origins(base, growth.plan):
        if not wanted(name):
            continue
        if name in own:
            yield name, Copied(own[name])
            continue
        place = family.split(name)
        assert place is not None
        block = blocks[place[0]]
        assert isinstance(block, Insert)
        if place[0] not in made:
            made.add(place[0])
            for suffix, tensor in _block(growth, block):
                if wanted(family.name(place[0], suffix)):
                    yield family.name(place[0], suffix), tensor
            return_freed_memory()


def _block(growth: Growth, insert: Insert) -> Iterator[tuple[str, Tensor | Copied]]:
    """Make one new block in the way that needs least: copies where nothing is computed."""
    if growth.base.source.quantisation is not None:
        return copied_block(growth, insert)
    copies = growth.method.copies and not growth.options.computing and insert.below == insert.above
    silent = _wholly_silent(growth, insert) if copies else None
    return new_block(growth, insert) if silent is None else _taken_over(growth, insert, silent)


def _wholly_silent(growth: Growth, insert: Insert) -> dict[str, float] | None:
    """Return the stored tensors of a block that are all silence; ``None`` if one is in part."""
    anatomy = growth.base.anatomy.blocks[insert.nearest]
    values: dict[str, set[float | None]] = {}
    for name, spec in anatomy.block.items():
        value = spec.silent if growth.options.silences(spec) else None
        values.setdefault(anatomy.places[name].suffix, set()).add(value)
    if any(len(own) > 1 for own in values.values()):
        return None
    alone = {suffix: own.pop() for suffix, own in values.items()}
    return {suffix: value for suffix, value in alone.items() if value is not None}


def _taken_over(
    growth: Growth, insert: Insert, silent: Mapping[str, float]
) -> Iterator[tuple[str, Tensor | Copied]]:
    """Copy a block as it is stored, but for tensors that are silent."""
    base, anatomy = growth.base, growth.base.anatomy.blocks[insert.nearest]
    for suffix, spec in anatomy.stored.items():
        full = base.family.name(insert.nearest, suffix)
        if suffix in silent:
            info = base.source.infos[full]
            yield suffix, torch.full(info.shape, silent[suffix], dtype=DTYPES[info.dtype])
        elif not spec.is_buffer:
            yield suffix, Copied(full)


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
            raise broken(insert.nearest, full)
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
