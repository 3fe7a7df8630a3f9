"""What of a block may be moved with its function left as it is, as far as its table tells.

Experts and neurons can always change places. The rest hangs on what else touches them: a norm, a
gate or a decay that sees single dimensions holds them where they are.
"""

from deepen.base.anatomy.dissection import BlockAnatomy
from deepen.base.anatomy.family import Heads
from deepen.base.anatomy.vocabulary import Axis, Role

_FFN: tuple[Role, ...] = ("gate", "up", "ffn_output")
_ATTENTION: tuple[Role, ...] = ("query", "key", "value", "attention_output")
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
            touched = _touched(block, block.block[up].axes[0], unit)
            if block.bilinear and block.name("gate", unit) and not touched:
                words.add("scale")
    heads = block.heads
    if heads and all(block.name(role) for role in _ATTENTION) and _of_one_size(block, heads):
        if not heads.fixed:
            words |= {"groups", "heads"} if 1 < heads.key_value < heads.query else {"heads"}
        if not heads.normed:
            words |= {"planes"} if heads.rotary else set()
            words |= {"keys"} if heads.rotary < heads.head else set()
        if not (heads.gated or _touched(block, "attended") or _touched(block, "value")):
            words.add("values")
    return [word for word in FREEDOMS if word in words]


def _of_one_size(block: BlockAnatomy, heads: Heads) -> bool:
    """Whether a block's heads have the sizes that the config gives for all blocks."""
    return all(block.sizes[axis] == size for axis, size in heads.sizes.items())


def _touched(block: BlockAnatomy, axis: Axis, unit: str = "") -> bool:
    """Whether tensors beside the usual ones have an entry for each position along an axis."""
    usual = (*_FFN, *_ATTENTION, "buffer")
    return any(
        axis in spec.axes and spec.unit == unit and spec.role not in usual
        for spec in block.block.values()
    )
