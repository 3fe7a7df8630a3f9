"""The one shape that every growth method has.

A method is data (name, paper, what trains) and two functions: ``place`` says where new blocks go,
``fuse`` makes one. What its options ask of every method alike (silent outputs, scales) the house
does. ``docs/methods.md`` shows how to write a method of your own in 30 lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from deepen.common.errors import DeepenError, unknown
from deepen.common.progress import Progress, silent
from deepen.methods.options import Options
from deepen.planning.placement import PlacementRequest, in_gaps
from deepen.planning.plan import Insert, Plan
from deepen.records.growth import AlignmentProof, Trains

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deepen.base.anatomy import Block, BlockAnatomy, TensorSpec
    from deepen.base.model import Model


@dataclass(frozen=True)
class Gap:
    """The place of one new block, with everything that it is made from."""

    below: Block
    """The lower parent, A."""
    above: Block
    """The upper parent, B; the same block as ``below`` for a copy."""
    anatomy: BlockAnatomy
    """What the new block is made of."""
    insert: Insert
    """Which blocks the parents are, and how far between them the new block lies."""
    tensors: Mapping[str, TensorSpec]
    """What the method must make: name of a logical tensor → what it is."""
    state: Any = None
    """What the method's own ``prepare`` found."""

    @property
    def t(self) -> float:
        """Where on the way from ``below`` (0) to ``above`` (1) the new block lies."""
        return self.insert.t


class Fuse(Protocol):
    """Make one new block; pure, apart from reading the parents."""

    def __call__(
        self,
        options: Any,  # noqa: ANN401 (each method's own Options class)
        gap: Gap,
        /,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield what ``gap.tensors`` names, in any order and any float dtype."""


@dataclass(frozen=True)
class Stack:
    """The whole base, for methods that must look at it once before any block is made."""

    model: Model
    """The base."""
    inserts: Sequence[Insert]
    """The new blocks from bottom to top."""
    seed: int
    """Seed of everything random."""
    device: torch.device
    """Where to compute."""
    progress: Progress = silent
    """Called with what is being done and the finished share of it."""


@dataclass(frozen=True)
class Prepared:
    """What a method found in the whole base."""

    state: Any = None
    """Handed to every ``fuse``."""
    proofs: Sequence[AlignmentProof] = field(default_factory=tuple)
    """For each pair of blocks that was aligned, how far the aligned one computes something else."""


class Prepare(Protocol):
    """Look at the whole base once, before any block is made."""

    def __call__(
        self,
        options: Any,  # noqa: ANN401
        stack: Stack,
        /,
    ) -> Prepared:
        """Return what ``fuse`` needs to know."""


@dataclass(frozen=True)
class Method:
    """A growth method; one of these per file, in the table of ``deepen.methods``."""

    name: str
    """Name on the command line."""
    summary: str
    """What a new block is, in a few words."""
    reference: str
    """Paper."""
    place: Callable[[PlacementRequest], Plan]
    """Where new blocks go."""
    fuse: Fuse
    """How one is made."""
    options: type[Options] = Options
    """The method's own options; they say whether the base's function is kept."""
    trains: Trains = "new_blocks"
    """What the paper trains after growing."""
    copies: bool = False
    """Whether a new block is its nearest parent as it is stored, but for what options ask, so that
    quantised blocks can be grown too."""
    prepare: Prepare | None = None
    """For methods that must see the whole stack first."""

    @property
    def preserves_function(self) -> bool:
        """Whether the grown model computes what the base computes, with the default options."""
        return self.options().preserves_function

    def trained(self, options: Options) -> Trains:
        """Return what trains after growing with some options."""
        return options.trained or self.trains


def copied(options: Options, gap: Gap) -> Iterator[tuple[str, Tensor]]:
    """Make a new block a copy of the one below; what ``fuse`` is for methods that copy."""
    for name in gap.tensors:
        yield name, gap.below[name]


def between(default: str = "top") -> Callable[[PlacementRequest], Plan]:
    """Make a ``place`` for methods that fuse the two blocks around a gap."""
    return partial(in_gaps, default=default, copies=False)


def above_copied(default: str) -> Callable[[PlacementRequest], Plan]:
    """Make a ``place`` for methods that copy the block below; they may also grow on top of all."""
    return partial(in_gaps, default=default, copies=True)


def parse_options(method: Method, values: Mapping[str, object]) -> Options:
    """Check option values, given as strings or as what they are, against a method's options.

    Raises:
        DeepenError: An option is unknown or its value does not fit.
    """
    for name in values:
        if name not in method.options.model_fields:
            if not method.options.model_fields:
                raise DeepenError(f"Method {method.name!r} has no options; leave out {name!r}.")
            raise unknown(f"option of {method.name}", name, method.options.model_fields)
    try:
        return method.options.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        if not problem["loc"]:  # what is wrong is how options go together
            reason = str(problem["ctx"]["error"])
            raise DeepenError(
                f"Options of {method.name!r} contradict each other: {reason}."
            ) from None
        given = repr(problem["input"])
        raise DeepenError(
            f"Option {problem['loc'][0]!r} of {method.name!r} cannot be {given[:80]}: "
            f"{problem['msg'][0].lower()}{problem['msg'][1:]}."
        ) from None
