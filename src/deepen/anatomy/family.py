"""The tables' types, and matching a checkpoint's tensor names against a table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deepen.errors import DeepenError


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a block."""

    role: str
    """What the tensor does; methods dispatch on it. A weight and its bias share a role."""
    axes: tuple[str, ...]
    """One label per axis, ``(out, in)`` for weights; equal labels mean equal sizes."""
    writes_residual: bool = False
    """Whether its output is added to the residual stream: zero it and the block adds nothing."""
    optional: bool = False
    """Whether checkpoints of the family may lack it."""


@dataclass(frozen=True)
class Family:
    """One model family: everything that growing must know about its checkpoints."""

    model_type: str
    """The ``model_type`` of its config.json."""
    block: Mapping[str, TensorSpec]
    """Tensor name inside a block → what it is, in the order of the forward pass."""
    outside: tuple[str, ...] = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    """The tensors that belong to no block; all but the output head are required."""
    block_prefix: str = "model.layers."
    """What stands before the block's index in a tensor name."""
    depth_field: str = "num_hidden_layers"
    """The config.json field that holds the number of blocks."""
    per_layer_lists: tuple[str, ...] = ()
    """Config fields that are lists with one entry per block."""
    prefix_counts: tuple[str, ...] = ()
    """Config fields that count blocks from the bottom ("the first n blocks are …")."""

    def name(self, index: int, suffix: str) -> str:
        """Return the full name of a block's tensor."""
        return f"{self.block_prefix}{index}.{suffix}"

    def split(self, name: str) -> tuple[int, str] | None:
        """Split a tensor name into block index and suffix; ``None`` if it is outside all blocks."""
        match = re.fullmatch(re.escape(self.block_prefix) + r"(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else None


@dataclass(frozen=True)
class Anatomy:
    """A family's table restricted to the tensors that one checkpoint really has."""

    family: Family
    depth: int
    """Number of blocks."""
    block: Mapping[str, TensorSpec]
    """Tensor name inside a block → what it is; the same for every block of the checkpoint."""
    outside: tuple[str, ...]
    """Names of the tensors outside all blocks, in the order of the table."""


def dissect(family: Family, depth: int, shapes: Mapping[str, tuple[int, ...]]) -> Anatomy:
    """Match a checkpoint's tensors against a family's table.

    Args:
        family: The table.
        depth: Number of blocks according to config.json.
        shapes: Tensor name → shape, for every tensor of the checkpoint.

    Returns:
        The anatomy that all blocks share.

    Raises:
        DeepenError: A tensor is unknown or missing, or the sizes along an axis label disagree.
    """
    suffixes: dict[int, set[str]] = {index: set() for index in range(depth)}
    outside = []
    for name in shapes:
        place = family.split(name)
        if place is None and name in family.outside:
            outside.append(name)
        elif place is None or place[1] not in family.block:
            raise DeepenError(
                f"Tensor {name!r} is not part of a {family.model_type!r} model as deepen knows it; "
                f"growing would have to guess what it does."
            )
        elif place[0] not in suffixes:
            raise DeepenError(
                f"Tensor {name!r} belongs to block {place[0]}, but config.json counts "
                f"{depth} blocks ({family.depth_field}); correct the checkpoint."
            )
        else:
            suffixes[place[0]].add(place[1])
    _require(family, suffixes, outside)
    block = {suffix: spec for suffix, spec in family.block.items() if suffix in suffixes[0]}
    _check_sizes(family, block, shapes)
    return Anatomy(family, depth, block, tuple(n for n in family.outside if n in outside))


def _require(family: Family, suffixes: Mapping[int, set[str]], outside: Iterable[str]) -> None:
    """Raise unless every block has the same, complete set of tensors."""
    required = {suffix for suffix, spec in family.block.items() if not spec.optional}
    present_anywhere = set().union(*suffixes.values())
    for index, present in suffixes.items():
        for suffix in family.block:
            if suffix in (required | present_anywhere) - present:
                raise DeepenError(
                    f"The checkpoint lacks tensor {family.name(index, suffix)!r}; "
                    f"fetch or export it again."
                )
    for name in family.outside:
        if name != "lm_head.weight" and name not in outside:
            raise DeepenError(f"The checkpoint lacks tensor {name!r}; fetch or export it again.")


def _check_sizes(
    family: Family, block: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise unless equal axis labels mean equal sizes in all blocks."""
    first_with: dict[str, tuple[str, int]] = {}
    for name, shape in shapes.items():
        place = family.split(name)
        if place is None:
            continue
        axes = block[place[1]].axes
        if len(axes) != len(shape):
            raise DeepenError(
                f"Tensor {name!r} has {len(shape)} axes where a {family.model_type!r} block has "
                f"{len(axes)}."
            )
        for axis, size in zip(axes, shape, strict=True):
            other, expected = first_with.setdefault(axis, (name, size))
            if size != expected:
                raise DeepenError(
                    f"Shapes differ between blocks: {name!r} has {size} along its {axis} axis "
                    f"where {other!r} has {expected}; blocks of unequal shape cannot be fused."
                )
