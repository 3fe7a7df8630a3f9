"""The base model as every stage sees it: a source, its anatomy, its blocks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.anatomy import FAMILIES, Anatomy, Family, dissect
from deepen.checkpoint import Source, is_finite
from deepen.errors import DeepenError
from deepen.hub import open_model


class LazyBlock(Mapping[str, Tensor]):
    """One block whose tensors are loaded, checked and moved to a device on access."""

    def __init__(self, source: Source, anatomy: Anatomy, index: int, device: torch.device) -> None:
        """Remember where the tensors are; load none."""
        self._source, self._anatomy, self._index, self._device = source, anatomy, index, device

    def __getitem__(self, suffix: str) -> Tensor:
        """Load one tensor in its stored dtype.

        Raises:
            DeepenError: It holds NaN or Inf.
        """
        name = self._anatomy.family.name(self._index, suffix)
        tensor = self._source.load(name)
        if not is_finite(tensor):
            raise DeepenError(
                f"Source block {self._index} holds NaN or Inf in tensor {name!r}; "
                f"new blocks made from it would be broken, so give it a sound checkpoint."
            )
        return tensor.to(self._device)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tensor names inside the block."""
        return iter(self._anatomy.block)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._anatomy.block)


@dataclass(frozen=True)
class Base:
    """A model that can be grown."""

    source: Source
    """Its config and tensors."""
    resolved: Mapping[str, Any]
    """Its config with the family's defaults filled in by transformers."""
    anatomy: Anatomy
    """What its blocks are made of."""

    @property
    def family(self) -> Family:
        """The family's table."""
        return self.anatomy.family

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.anatomy.depth

    def block(self, index: int, device: torch.device) -> LazyBlock:
        """Return one block, to be loaded on access."""
        return LazyBlock(self.source, self.anatomy, index, device)

    @property
    def parameters_per_block(self) -> int:
        """Number of parameters of one block."""
        infos = self.source.infos
        return sum(infos[self.family.name(0, suffix)].parameters for suffix in self.anatomy.block)


def open_base(model: str | Path, revision: str | None = None) -> Base:
    """Open a checkpoint folder or a hub id as a base.

    Raises:
        DeepenError: It is missing, damaged, quantised, or of a family that deepen does not know.
    """
    return as_base(open_model(model, revision))


def as_base(source: Source) -> Base:
    """Match a source against the table of its family.

    Raises:
        DeepenError: The family or one of its tensors is unknown, or the config is invalid.
    """
    model_type = source.config.get("model_type")
    if model_type not in FAMILIES:
        raise DeepenError(
            f"{source.name} is of family {model_type!r}, which deepen cannot grow yet; "
            f"known families: {', '.join(FAMILIES)}."
        )
    family = FAMILIES[model_type]
    resolved = _resolve(source, model_type)
    depth = resolved[family.depth_field]
    anatomy = dissect(family, depth, source.shapes)
    if "lm_head.weight" not in anatomy.outside and not resolved["tie_word_embeddings"]:
        raise DeepenError(
            "The checkpoint lacks tensor 'lm_head.weight', and config.json does not tie it to the "
            "embeddings (tie_word_embeddings); fetch or export it again."
        )
    return Base(source, resolved, anatomy)


def _resolve(source: Source, model_type: str) -> dict[str, Any]:
    """Fill in the family's defaults as transformers does."""
    from transformers import CONFIG_MAPPING

    try:
        resolved: dict[str, Any] = (
            CONFIG_MAPPING[model_type].from_dict(dict(source.config)).to_dict()
        )
    except Exception as error:  # the config classes raise many types, all for a wrong config
        reason = " ".join(str(error).split())
        raise DeepenError(
            f"transformers rejects config.json of {source.name} ({reason}); correct it."
        ) from None
    return resolved
