"""An opened checkpoint as every stage sees it: a source, its anatomy, its blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.base.anatomy import FAMILIES, REFUSED, Anatomy, Family, dissect, family_named
from deepen.base.anatomy.dissection import with_scales
from deepen.base.anatomy.family import Tower
from deepen.base.anatomy.towers import (
    SECTION,
    TOWERS,
    text_section,
    tower_family,
    with_text_section,
)
from deepen.base.checkpoint import Source, positions_of, transformers_config
from deepen.base.folder import is_native, portable
from deepen.base.hub import open_checkpoint
from deepen.base.text import tokenizer_of
from deepen.base.weights.values import magnitude
from deepen.common.errors import DeepenError
from deepen.common.quiet import quiet_transformers
from deepen.records.growth import read_entry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from deepen.base.memory import InMemory

OVERFLOWS = 2.0**63
"""Above this, squares of values are no float32: a model that holds such computes no numbers."""


class LazyBlock(Mapping[str, "Tensor"]):
    """One block whose logical tensors are loaded, checked and moved to a device on access."""

    def __init__(
        self, source: Source, anatomy: Anatomy, index: int, device: torch.device, *, fused: bool
    ) -> None:
        """Remember where the tensors are; load none."""
        self._source, self._index, self._device, self._fused = source, index, device, fused
        self._family, self._anatomy = anatomy.family, anatomy.blocks[index]

    def __getitem__(self, logical: str) -> Tensor:
        """Load one logical tensor in its stored dtype, a quantised one in float32.

        Raises:
            DeepenError: It holds NaN or Inf, or is to be computed with and too large for that.
        """
        place = self._anatomy.places[logical]
        name = self._family.name(self._index, place.suffix)
        tensor = place.read(self._source.value(name), self._anatomy.sizes)
        largest = magnitude(tensor)
        if not math.isfinite(largest):
            raise DeepenError(
                f"Source block {self._index} holds NaN or Inf in tensor {name!r}; "
                f"new blocks made from it would be broken, so give it a sound checkpoint."
            )
        if self._fused and largest > OVERFLOWS:
            raise DeepenError(
                f"Source block {self._index} holds values up to {largest:.2g} in tensor {name!r}, "
                f"the squares of which float32 does not hold; give it a sound checkpoint, or a "
                f"method that copies (llama-pro)."
            )
        return _aligned(tensor).to(self._device)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of its logical tensors."""
        return iter(self._anatomy.block)

    def __len__(self) -> int:
        """Return the number of logical tensors."""
        return len(self._anatomy.block)


def _aligned(tensor: Tensor) -> Tensor:
    """Copy a tensor that was mapped from an odd place of a file.

    Products of such memory can round otherwise, and how a checkpoint lays its tensors out must not
    change what is made of it.
    """
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 64 else tensor


@dataclass(frozen=True)
class Model:
    """An opened model of a family that can be grown."""

    source: Source
    """Its config and tensors."""
    resolved: Mapping[str, Any]
    """Its config, of a larger model its text model's, with defaults filled in by transformers."""
    anatomy: Anatomy
    """What its blocks are made of."""

    @property
    def family(self) -> Family:
        """The family's table, with the tensor names that this checkpoint uses."""
        return self.anatomy.family

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json says of the blocks: of a larger model, of its text model."""
        if self.family.tower is None:
            return self.source.config
        section = text_section(self.source.config) or {}
        return {**section, "model_type": self.family.model_type}

    def whole_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return config.json with other fields of the blocks, which are as ``config`` has them."""
        if self.family.tower is None:
            return dict(config)
        return with_text_section(portable(self.source.config), config)

    @cached_property
    def in_memory(self) -> InMemory:
        """The model as transformers holds it, without its weights."""
        from deepen.base.memory import InMemory

        return InMemory.of(self.source, self.resolved, self.anatomy)

    @property
    def blocks_path(self) -> str:
        """The path of the blocks in transformers' own model, for ``get_submodule``."""
        return self.anatomy.table.block_prefix.rstrip(".")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.anatomy.depth

    @property
    def positions(self) -> int | None:
        """How many positions the model has; ``None`` if it does not say."""
        return positions_of(self.resolved)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer; see ``tokenizer_of``."""
        return tokenizer_of(self.source)

    def block(self, index: int, device: torch.device, *, fused: bool = False) -> LazyBlock:
        """Return one block, to be loaded on access.

        Args:
            index: Which one.
            device: Where its tensors are wanted.
            fused: Whether something is computed of them, beside copies.
        """
        return LazyBlock(self.source, self.anatomy, index, device, fused=fused)

    def parameters_of(self, index: int) -> int:
        """Return the number of parameters of one block."""
        infos, stored = self.source.infos, self.anatomy.blocks[index].stored
        return sum(
            infos[self.family.name(index, suffix)].parameters
            for suffix, spec in stored.items()
            if not spec.is_buffer
        )


def open_model(model: str | Path, revision: str | None = None, *, quantised: bool = False) -> Model:
    """Open a checkpoint folder or a hub id.

    Args:
        model: Checkpoint folder or hub id.
        revision: Branch, tag or commit on the hub.
        quantised: Whether quantised weights will do.

    Raises:
        DeepenError: It is missing, damaged, quantised, or of a family that deepen does not know.
    """
    return as_model(open_checkpoint(model, revision, quantised=quantised))


def as_model(source: Source) -> Model:
    """Match a source against the table of its family.

    Raises:
        DeepenError: The family or one of its tensors is unknown, the config is invalid, or it
            describes a model that cannot be grown.
    """
    whole_type = source.config.get("model_type")
    tower = TOWERS.get(whole_type) if isinstance(whole_type, str) else None
    family, resolved = _in_tower(source, tower) if tower else _alone(source)
    for refusal in family.refusals:
        if refusal.when(resolved):
            raise DeepenError(f"{source.name} cannot be grown: {refusal.reason}.")
    weights = {name: shape for name, shape in source.shapes.items() if name not in source.scales}
    anatomy = with_scales(dissect(family, resolved, weights), source.scales)
    _check_lineage(source, anatomy.depth)
    quantised = {*source.scales.values()}
    for index, block in enumerate(anatomy.blocks):
        for suffix, spec in block.stored.items():
            name = anatomy.family.name(index, suffix)
            info = source.infos[name]
            if not (spec.is_buffer or info.is_float or name in quantised):
                raise DeepenError(
                    f"Tensor {name!r} is stored as {info.dtype}, "
                    f"which deepen cannot compute with; give it an unquantised checkpoint."
                )
    tied, head = resolved.get("tie_word_embeddings", True), anatomy.family.head
    if head not in anatomy.outside and not tied:
        raise DeepenError(
            f"The checkpoint lacks tensor {head!r}, and config.json does not tie it to the "
            f"embeddings (tie_word_embeddings); fetch or export it again."
        )
    return Model(source, resolved, anatomy)


def _check_lineage(source: Source, depth: int) -> None:
    """Hold a ``deepen`` entry to the number of blocks that there are.

    Raises:
        DeepenError: It tells of another number.
    """
    lineage = read_entry(source.config)
    if lineage is None:
        return
    told = len(lineage.steps[-1].plan) if lineage.steps else depth
    trained = [t.blocks for t in lineage.trainings if t.after_steps == len(lineage.steps)]
    highest = max((block for blocks in trained for block in blocks), default=0)
    if told != depth or highest >= depth:
        raise DeepenError(
            f"The deepen entry of {source.name} tells of {max(told, highest + 1)} blocks, and "
            f"there are {depth}; restore config.json, or take the entry out of it if blocks were "
            f"changed by other means."
        )


def _alone(source: Source) -> tuple[Family, dict[str, Any]]:
    """Return the table of a source's family, and its config with the family's defaults."""
    family = _family(source)
    with _rejections(source):
        return family, _resolved(family, transformers_config(source))


def _in_tower(source: Source, tower: Tower) -> tuple[Family, dict[str, Any]]:
    """Return the table and the config of the text model inside a larger one.

    Raises:
        DeepenError: No table has it, or the config is invalid.
    """
    with _rejections(source):
        whole = transformers_config(source)
        text = whole.get_text_config()
        rooted = tower.rooted(whole.to_dict()) if tower.rooted else 0
    if source.scales:
        raise DeepenError(
            f"{source.name} reads images too, and is quantised; give it an unquantised checkpoint."
        )
    if text_section(source.config) is None:
        raise DeepenError(f"config.json of {source.name} has no {SECTION}; write it out.")
    family = tower_family(tower, text.model_type)
    if family is None:
        reason = REFUSED.get(text.model_type, "no table of docs/architectures.md has it")
        raise DeepenError(
            f"{source.name} holds a text model of family {text.model_type!r}, which deepen does "
            f"not grow: {reason}."
        )
    with _rejections(source):
        resolved = _resolved(family, text)
    # What ties head and embeddings is the larger model.
    resolved["tie_word_embeddings"] = whole.tie_word_embeddings
    return replace(family, rooted=rooted), resolved


def _family(source: Source) -> Family:
    """Find the table of a source's family.

    Raises:
        DeepenError: There is none.
    """
    model_type = source.config.get("model_type")
    if model_type is None:
        raise DeepenError(f"config.json of {source.name} names no model_type; correct it.")
    if family := family_named(model_type):
        return family
    if model_type in REFUSED:
        raise DeepenError(
            f"{source.name} is of family {model_type!r}, which deepen does not grow: "
            f"{REFUSED[model_type]}."
        )
    if source.config.get("is_encoder_decoder"):
        what = "an encoder-decoder model; deepen grows decoders alone"
    elif text := _text_model(source.config):
        kind = "vision-language" if "vision_config" in source.config else "multimodal"
        what = f"a {kind} model, and deepen does not grow its text model {text!r} either"
        if family_named(text):
            what = (
                f"a {kind} model; save its text model as a checkpoint of its own, of "
                f"family {text!r}, as docs/architectures.md shows, and grow that"
            )
    else:
        what = (
            f"of family {model_type!r}, which deepen cannot grow yet; "
            f"docs/architectures.md lists the {len(FAMILIES)} that it can, and shows how to add one"
        )
    raise DeepenError(f"{source.name} is {what}.")


def _text_model(config: Mapping[str, Any]) -> str | None:
    """Return the family of the text model inside a larger one; ``None`` if it is none such."""
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return str(text.get("model_type", "unknown"))
    seeing = any(key.endswith("_config") and "vision" in key for key in config)
    return "unknown" if seeing else None


def _resolved(family: Family, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of a config, in which transformers filled in the family's defaults."""
    # A config that counts its blocks by the length of a list does not store the number.
    return {family.depth_field: getattr(config, family.depth_field)} | config.to_dict()


@contextmanager
def _rejections(source: Source) -> Iterator[None]:
    """Say in a sentence why transformers does not read a config."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # the config classes raise many types, all for a wrong config
        reason = " ".join(str(error).split())[:200]
        if not is_native(source.config):
            raise DeepenError(
                f"The transformers that is installed does not know the model_type of {source.name} "
                f"({reason}); update it."
            ) from None
        raise DeepenError(
            f"transformers rejects config.json of {source.name} ({reason}); correct it."
        ) from None
