"""What a Transformer block is made of, per model family, as data.

A family is a table: tensor name inside a block → role, axis labels, how it is stored, and what
value silences it. Methods dispatch on roles and never on names, so a new family is a new table. Its
words are listed in ``vocabulary``, and ``parts``, ``experts`` and ``mixers`` put it together. A
tensor that no table knows is an error that names it: nothing is skipped and nothing is guessed.
"""

from deepen.base.anatomy.dissection import Anatomy, BlockAnatomy, dissect
from deepen.base.anatomy.families import FAMILIES, REFUSED, family_named
from deepen.base.anatomy.family import Family, Heads
from deepen.base.anatomy.tensors import Block, TensorSpec
from deepen.base.anatomy.vocabulary import Axis, Role

__all__ = [
    "FAMILIES",
    "REFUSED",
    "Anatomy",
    "Axis",
    "Block",
    "BlockAnatomy",
    "Family",
    "Heads",
    "Role",
    "TensorSpec",
    "dissect",
    "family_named",
]
