"""One tensor: what it does, and how a checkpoint stores it.

Methods see *logical* tensors: a weight is ``[out, in]``, query, key and value are apart, and every
expert has its own gate, up and down projection. Checkpoints store them otherwise: GPT-2 keeps
``[in, out]``, Phi-3 one tensor for query, key and value, gpt-oss one for all experts. A
``StoredSpec`` says how, and ``view`` finds a logical tensor in a stored one, to read or to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deepen.base.anatomy.vocabulary import Axis, Role

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["rows", "alternate", "heads", "per_head", "quarters"]
"""How logical tensors share the out axis of a stored one.

``rows``: one after the other. ``alternate``: row by row in turn. ``heads``: per group of heads, the
query heads of the group, then its key, then its value. ``per_head``: head by head, one after the
other. ``quarters``: a quarter of each one after the other, four times.
"""


@dataclass(frozen=True)
class TensorSpec:
    """One logical tensor of a block."""

    role: Role
    """What the tensor does; methods dispatch on it. A weight and its bias share a role."""
    axes: tuple[Axis, ...]
    """One label per axis, ``(out, in)`` for weights; equal labels mean equal sizes."""
    silent: float | None = None
    """The value that stops the tensor from changing the residual stream; ``None`` where the block
    is silenced elsewhere. With all of a block's such tensors at this value, it adds exactly 0."""
    bias: bool = False
    """Whether it is added, beside a weight of the same role."""
    unit: str = ""
    """Which of several FFNs it belongs to: an expert's number, or ``shared``."""

    @property
    def writes_residual(self) -> bool:
        """Whether methods that keep the base's function must silence it."""
        return self.silent is not None

    @property
    def is_weight(self) -> bool:
        """Whether it is a matrix ``[out, in]``."""
        return len(self.axes) == 2

    @property
    def key(self) -> tuple[Role, str, bool]:
        """What it is, whatever it is called: unique in a block."""
        return self.role, self.unit, self.bias


@dataclass(frozen=True)
class StoredSpec:
    """One tensor of a block as a checkpoint stores it, holding one or more logical tensors."""

    parts: tuple[TensorSpec, ...]
    """What it holds, in stored order; for a bank, what each expert has."""
    split: Split | None = None
    """How several parts share the out axis."""
    transposed: bool = False
    """Whether weights are stored ``[in, out]``."""
    bank: bool = False
    """Whether the first axis counts experts."""
    optional: bool = False
    """Whether checkpoints of the family may lack it."""

    @property
    def is_buffer(self) -> bool:
        """Whether it is no parameter: what loaders compute anew or ignore, or a weight's scales."""
        return self.parts[0].role in ("buffer", "scale")


@dataclass(frozen=True)
class Place:
    """Where a logical tensor stands in a stored one."""

    suffix: str
    """Name of the stored tensor inside its block."""
    stored: StoredSpec
    """How it is stored."""
    part: int = 0
    """Which of its parts."""
    expert: int | None = None
    """Which expert of a bank."""

    @property
    def is_whole(self) -> bool:
        """Whether the stored tensor is the logical one, as it stands."""
        return self.stored.split is None and not self.stored.transposed and not self.stored.bank

    def view(self, stored: Tensor, sizes: Mapping[Axis, int]) -> Tensor:
        """Return the logical tensor's elements as a view; its first axes may want flattening.

        Args:
            stored: The stored tensor.
            sizes: Axis label → size, as far as the config tells.
        """
        spec, parts = self.stored, self.stored.parts
        tensor = stored if self.expert is None else stored[self.expert]
        if spec.transposed and tensor.dim() == 2:
            tensor = tensor.T
        if spec.split == "rows":
            # Parts whose size the config does not tell are equal: gate and up.
            equal = tensor.shape[0] // len(parts)
            rows = [sizes.get(part.axes[0], equal) for part in parts]
            tensor = tensor.narrow(0, sum(rows[: self.part]), rows[self.part])
        elif spec.split == "alternate":
            tensor = tensor[self.part :: len(parts)]
        elif spec.split == "heads":
            groups = sizes["key_value"] // sizes["head"]
            width = sizes["query"] // sizes["head"] // groups
            heads = tensor.unflatten(0, (groups, width + 2, sizes["head"]))
            tensor = heads[:, :width] if self.part == 0 else heads[:, width + self.part - 1]
        elif spec.split == "per_head":
            tensor = tensor.unflatten(0, (-1, len(parts), sizes["head"]))[:, self.part]
        elif spec.split == "quarters":
            tensor = tensor.unflatten(0, (4, len(parts), -1))[:, self.part]
        return tensor

    def read(self, stored: Tensor, sizes: Mapping[Axis, int]) -> Tensor:
        """Return the logical tensor, ``[out, in]`` or ``[out]``; a view where that is possible."""
        if self.is_whole:
            return stored
        axes = len(self.stored.parts[self.part].axes)
        tensor = self.view(stored, sizes)
        return tensor.flatten(0, tensor.dim() - axes) if tensor.dim() > axes else tensor

    def write(self, value: Tensor, stored: Tensor, sizes: Mapping[Axis, int]) -> None:
        """Put a logical tensor into its place in a stored one.

        Raises:
            RuntimeError: Its shape is not that of the place.
        """
        target = self.view(stored, sizes)
        target.copy_(value.reshape(target.shape))


Block = Mapping[str, "Tensor"]
"""Name of a logical tensor → tensor, loaded on access; weights are ``[out, in]``."""
Table = Mapping[str, StoredSpec]
"""Name inside a block → how it is stored; ``*`` in a name stands for an expert's number."""
Kinds = Mapping[str, Table]
"""Kind of block → its tensors, in the order of the forward pass."""
