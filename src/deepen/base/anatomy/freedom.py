"""What of a block may be moved with its function left as it is, as far as its table tells.

Experts and neurons can always change places. The rest hangs on what else touches them: a norm, a
gate or a decay that sees single dimensions holds them where they are.
"""

from deepen.base.anatomy.dissection import BlockAnatomy
from deepen.base.anatomy.family import Heads
from deepen.base.anatomy.vocabulary import Axis, Role

FFN: tuple[Role, ...] = ("gate", "up", "ffn_output")
"""Roles of an FFN's weights."""
ATTENTION: tuple[Role, ...] = ("query", "key", "value", "attention_output")
"""Roles of an attention's weights."""
FREEDOMS = ("experts", "neurons", "scale", "groups", "heads", "planes", "keys", "values")
"""What can be aligned: experts, an FFN's neurons and the scale between their up rows and down
columns; KV groups, query heads inside them, RoPE's planes inside a head, the basis of the keys'
other dimensions, and the basis of the values."""


def freedoms(block: BlockAnatomy) -> list[str]:
    """Return what of a block is aligned, in words of ``FREEDOMS``."""
    words = {"experts"} if block.experts else set()
    for unit in block.units:
        up = block.name("up", unit)
        if up:
            words.add("neurons")
            touched = beside(block, block.block[up].axes[0], unit)
            if block.bilinear and block.name("gate", unit) and not touched:
                words.add("scale")
    heads = block.heads
    if heads and all(block.name(role) for role in ATTENTION) and _of_one_size(block, heads):
        if not heads.fixed:
            words |= {"groups", "heads"} if 1 < heads.key_value < heads.query else {"heads"}
        if not heads.normed:
            words |= {"planes"} if heads.rotary else set()
            words |= {"keys"} if heads.rotary < heads.head else set()
        if not (heads.gated or beside(block, "attended") or beside(block, "value")):
            words.add("values")
    return [word for word in FREEDOMS if word in words]


def _of_one_size(block: BlockAnatomy, heads: Heads) -> bool:
    """Whether a block's heads have the sizes that the config gives for all blocks."""
    return all(block.sizes[axis] == size for axis, size in heads.sizes.items())


def beside(block: BlockAnatomy, axis: Axis | None, unit: str = "") -> list[str]:
    """Name the tensors beside the usual ones that have an entry for each position along an axis."""
    usual = (*FFN, *ATTENTION, "buffer")
    return [
        name
        for name, spec in block.block.items()
        if axis in spec.axes and spec.unit == unit and spec.role not in usual
    ]
