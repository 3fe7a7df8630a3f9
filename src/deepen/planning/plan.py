"""A growth plan: the new stack, block by block, as data.

``[0, 1, [1, 2, 0.5], 2]`` reads: keep block 0, keep block 1, a new block between 1 and 2 at
t = ½, keep block 2. The JSON form is exactly that list.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepen.common.errors import DeepenError

MOST_BLOCKS = 4096
"""Depth of the deepest grown model: a request for more is a slip, and would take hours to plan."""


@dataclass(frozen=True)
class Keep:
    """Block ``source`` of the base, bit for bit."""

    source: int


@dataclass(frozen=True)
class Insert:
    """A new block made from the base's blocks ``below`` and ``above``; a copy if they are one."""

    below: int
    above: int
    t: float
    """Where on the way from ``below`` (0) to ``above`` (1) the new block lies."""

    @property
    def parents(self) -> tuple[int, ...]:
        """The base blocks that the new block is made from."""
        return tuple(dict.fromkeys((self.below, self.above)))

    @property
    def nearest(self) -> int:
        """The parent whose dtype and block type the new block takes; ``below`` at t = ½."""
        return self.below if self.t <= 0.5 else self.above


@dataclass(frozen=True)
class Plan:
    """The blocks of the grown model from bottom to top."""

    base_depth: int
    """Number of blocks of the base."""
    blocks: tuple[Keep | Insert, ...]
    """One entry per block of the grown model."""

    def __post_init__(self) -> None:
        """Check that every base block is kept once, in order, and that all parents exist.

        Raises:
            ValueError: The plan would lose, repeat or reorder the base's blocks.
        """
        kept = [block.source for block in self.blocks if isinstance(block, Keep)]
        if kept != list(range(self.base_depth)):
            raise ValueError(f"a plan keeps blocks 0..{self.base_depth - 1} in order, not {kept}")
        for block in self.inserts:
            if not 0 <= block.below <= block.above < self.base_depth:
                raise ValueError(f"{block} names a block that the base does not have")
            if not 0 <= block.t <= 1:
                raise ValueError(f"{block} does not lie between its parents")

    @property
    def depth(self) -> int:
        """Number of blocks of the grown model."""
        return len(self.blocks)

    @property
    def new_blocks(self) -> list[int]:
        """Indices, in the grown model, of the blocks that the base does not have."""
        return [i for i, block in enumerate(self.blocks) if isinstance(block, Insert)]

    @property
    def inserts(self) -> list[Insert]:
        """The new blocks from bottom to top."""
        return [block for block in self.blocks if isinstance(block, Insert)]

    @property
    def type_parents(self) -> list[int]:
        """For each block of the grown model, the base block whose type it has."""
        return [b.source if isinstance(b, Keep) else b.nearest for b in self.blocks]

    def then(self, later: "Plan") -> "Plan":
        """Return the plan that leads from this plan's base to what ``later`` makes of its result.

        A block that ``later`` makes from a new block counts as made from that block's nearest
        parent.
        """
        parents = self.type_parents
        blocks = (
            self.blocks[block.source]
            if isinstance(block, Keep)
            else Insert(parents[block.below], parents[block.above], block.t)
            for block in later.blocks
        )
        return Plan(self.base_depth, tuple(blocks))

    def to_json(self) -> list[int | list[int | float]]:
        """Return the plan as the list that the module's docstring shows."""
        return [
            block.source if isinstance(block, Keep) else [block.below, block.above, block.t]
            for block in self.blocks
        ]

    @classmethod
    def from_json(cls, blocks: Sequence[int | Sequence[float]]) -> "Plan":
        """Read the list form back.

        Raises:
            DeepenError: It is not such a list.
        """
        try:
            parsed = tuple(Keep(b) if isinstance(b, int) else _insert(b) for b in blocks)
            return cls(sum(isinstance(block, Keep) for block in parsed), parsed)
        except (TypeError, ValueError) as error:
            raise DeepenError(
                f"The checkpoint's deepen entry holds no valid plan ({error}); "
                f"grow it again from its base."
            ) from None


def _insert(block: Sequence[float]) -> Insert:
    """Read a new block.

    Raises:
        ValueError: It is not two whole numbers and one between 0 and 1.
    """
    if len(block) != 3:
        raise ValueError(f"a new block is [below, above, t], and one has {len(block)} entries")
    below, above, t = block
    if not (float(below).is_integer() and float(above).is_integer()):
        raise ValueError(f"[{below}, {above}, {t}] names no blocks")
    return Insert(int(below), int(above), float(t))


def insert_after(depth: int, after: Iterable[int], *, copies: bool) -> Plan:
    """Plan one new block for each entry of ``after``.

    Args:
        depth: Number of blocks of the base.
        after: Base blocks, each naming the gap above it, and -1 for the one below block 0; m
            mentions of a gap put m blocks there, at t = j / (m + 1) for j = 1..m (the displacement
            interpolation of optimal transport).
        copies: Whether new blocks are copies of the block below (t = 0) instead.
    """
    count = Counter(after)
    blocks: list[Keep | Insert] = [Insert(0, 0, 0.0)] * count[-1]
    for index in range(depth):
        blocks.append(Keep(index))
        m = count[index]
        for j in range(1, m + 1):
            blocks.append(
                Insert(index, index, 0.0) if copies else Insert(index, index + 1, j / (m + 1))
            )
    return Plan(depth, tuple(blocks))
