"""The one shape that every growth method has.

A method is data (name, paper, what trains) and two functions: ``place`` says where new blocks go,
``fuse`` makes one. ``docs/methods.md`` shows how to write a method of your own in 30 lines.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from deepen import placement as placements
from deepen.anatomy import BlockAnatomy
from deepen.errors import DeepenError, unknown
from deepen.placement import Placement
from deepen.plans import Insert, Plan, insert_after

if TYPE_CHECKING:
    from deepen.base import Base

Block = Mapping[str, Tensor]
"""Name of a logical tensor → tensor, loaded on access; weights are ``[out, in]``."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the finished share of it, 0 to 1."""


def silent(stage: str, share: float) -> None:
    """Report progress to nobody."""


class Options(BaseModel):
    """A method's own options; each field's docstring is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FusedOptions(Options):
    """Options of every method that makes new weights; each may have its own defaults."""

    output_scale: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What is kept of the output projections: `0` keeps the base's function, `1` all of them."""
    restore_norms: bool = False
    """Whether fused rows get the parents' mean norm back, which averaging unlike rows shrinks."""
    feature_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Factor on value and up projections, and so on what the output projections learn from."""


class BlendedOptions(FusedOptions):
    """Options of the methods that take a mean of the two parents."""

    upper_share: float = Field(default=0.5, ge=0, le=1)
    """Weight of the upper block in the mean, where a gap takes one new block: `0` is the lower
    block, `1` the upper one; with several in a gap each is shifted by the same odds."""
    match_norms: bool = False
    """Whether rows of the lower block first get the norms of the upper block's rows that they are
    averaged with, so that both count alike."""

    def weight(self, t: float) -> float:
        """Return the upper block's weight in a new block at ``t`` of the way through its gap."""
        upper, lower = self.upper_share * t, (1 - self.upper_share) * (1 - t)
        return upper / (upper + lower)


@dataclass(frozen=True)
class Request:
    """Where the user wants new blocks; what is ``None`` is left to the method."""

    depth: int
    """Number of blocks of the base."""
    new_layers: int | None = None
    """Number of new blocks."""
    placement: Placement | None = None
    """Strategy or explicit list."""
    per_gap: int = 1
    """How many new blocks a gap may take."""
    scores: Callable[[], Sequence[float]] | None = None
    """Says how well the blocks around each gap align; only some placements ask."""


class Fuse(Protocol):
    """Make one new block; pure, apart from reading the parents."""

    def __call__(
        self,
        options: Any,  # noqa: ANN401 (each method's own Options class)
        below: Block,
        above: Block,
        anatomy: BlockAnatomy,
        insert: Insert,
        state: Any,  # noqa: ANN401 (what the method's own ``prepare`` returned)
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor that ``anatomy.block`` names, in any float dtype."""


class Prepare(Protocol):
    """Look at the whole base once, before any block is made."""

    def __call__(
        self,
        options: Any,  # noqa: ANN401
        base: "Base",
        inserts: Sequence[Insert],
        seed: int,
        device: torch.device,
        progress: Progress,
    ) -> Any:  # noqa: ANN401
        """Return the state that is handed to every ``fuse``."""


@dataclass(frozen=True)
class Method:
    """A growth method; one of these per file, in the table of ``deepen.methods``."""

    name: str
    """Name on the command line."""
    summary: str
    """What a new block is, in a few words."""
    reference: str
    """Paper."""
    place: Callable[[Request], Plan]
    """Where new blocks go."""
    fuse: Fuse
    """How one is made."""
    options: type[Options] = Options
    """The method's own options."""
    preserves_function: bool = False
    """Whether the grown model computes what the base computes, until it is trained, with the
    method's default options."""
    trains: Literal["new_blocks", "everything"] = "new_blocks"
    """What the paper trains after growing."""
    prepare: Prepare | None = None
    """For methods that must see the whole stack first."""

    def keeps_function(self, options: Options) -> bool:
        """Whether the grown model computes what the base computes, with these options."""
        if isinstance(options, FusedOptions):
            return options.output_scale == 0
        return self.preserves_function


def between(default: str = "top") -> Callable[[Request], Plan]:
    """Make a ``place`` for methods that fuse the two blocks around a gap."""
    return lambda request: _insert(request, default, copies=False)


def above_copied(default: str) -> Callable[[Request], Plan]:
    """Make a ``place`` for methods that copy the block below; they may also grow on top of all."""
    return lambda request: _insert(request, default, copies=True)


def _insert(request: Request, default: str, *, copies: bool) -> Plan:
    """Choose the gaps and plan one new block for each."""
    gaps = placements.choose_gaps(
        request.placement or Placement(default),
        request.depth,
        request.new_layers,
        request.per_gap,
        open_top=copies,
        scores=request.scores,
    )
    return insert_after(request.depth, gaps, copies=copies)


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
        raise DeepenError(
            f"Option {problem['loc'][0]!r} of {method.name!r} cannot be {problem['input']!r}: "
            f"{problem['msg'][0].lower()}{problem['msg'][1:]}."
        ) from None
