"""One new block, made by a method and finished by the house as in every growth."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deepen.base.anatomy import FAMILIES, dissect
from deepen.base.checkpoint import Source, info_of
from deepen.base.model import Model
from deepen.growth.fuse import Growth, logical_tensors
from deepen.growth.preview import resolve
from deepen.methods.method import Method
from deepen.methods.options import Options
from deepen.planning.plan import Insert, Keep, Plan
from deepen.records.growth import GrowRequest

CPU = torch.device("cpu")


class Tensors(Source):
    """A base that is nothing but tensors in memory."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Hold the tensors as they are."""
        self.name, self.revision, self.config = "tensors", None, config
        self.infos = {name: info_of(tensor, name) for name, tensor in tensors.items()}
        self._tensors = tensors

    def load(self, name: str) -> Tensor:
        """Return one tensor itself."""
        return self._tensors[name]


def llama_of(*blocks: Mapping[str, Tensor], heads: int = 6, kv_heads: int = 2) -> Model:
    """Return a Llama of these blocks, in memory."""
    family, first = FAMILIES["llama"], blocks[0]
    hidden, biased = len(first["input_layernorm.weight"]), "mlp.up_proj.bias" in first
    config = {
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": hidden,
        "intermediate_size": len(first["mlp.up_proj.weight"]),
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": len(first["self_attn.q_proj.weight"]) // heads,
        "attention_bias": biased,
        "mlp_bias": biased,
        "tie_word_embeddings": True,
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(11, hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
    }
    for index, block in enumerate(blocks):
        tensors |= {family.name(index, suffix): tensor for suffix, tensor in block.items()}
    source = Tensors(config, tensors)
    return Model(source, config, dissect(family, config, source.shapes))


def between(
    method: Method,
    options: Options,
    below: Mapping[str, Tensor],
    above: Mapping[str, Tensor],
    t: float = 0.5,
    **heads: int,
) -> dict[str, Tensor]:
    """Make the new block between two blocks of a Llama, at ``t`` of the way."""
    base = llama_of(below, above, **heads)
    plan = Plan(2, (Keep(0), Insert(0, 1, t), Keep(1)))
    return first_block(Growth(base, GrowRequest(), plan, method, options, CPU))


def growth_of(base: Model, method: str, seed: int = 0, **options: Any) -> Growth:
    """Return what a method makes of a base, placed by default."""
    return resolve(base, GrowRequest(method=method, seed=seed, options=options, device="cpu"))


def first_block(growth: Growth) -> dict[str, Tensor]:
    """Make a growth's first new block, as it is before it is stored."""
    return dict(logical_tensors(growth, growth.plan.inserts[0]))
