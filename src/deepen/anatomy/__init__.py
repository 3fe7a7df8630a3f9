"""What a Transformer block is made of, per model family, as data.

A family is a table: tensor name inside a block → role, axis labels, whether the tensor writes into
the residual stream. Methods dispatch on roles and never on names, so a new family is a new table.
A tensor that no table knows is an error that names it: nothing is skipped and nothing is guessed.
"""

from deepen.anatomy.family import Anatomy, Family, TensorSpec, dissect
from deepen.anatomy.llama import LLAMA, MISTRAL, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)
}
"""Every family that can be grown, by ``model_type`` of its config.json."""

__all__ = ["FAMILIES", "Anatomy", "Family", "TensorSpec", "dissect"]
