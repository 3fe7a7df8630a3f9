"""One model family: everything that growing must know about its checkpoints, as a table."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deepen.base.anatomy.tensors import Kinds
from deepen.base.anatomy.vocabulary import Axis

Config = Mapping[str, Any]
"""A model's config.json with its family's defaults filled in."""


@dataclass(frozen=True)
class Heads:
    """What attention heads are like: by default such that nothing is moved inside attention."""

    query: int
    """Number of query heads."""
    key_value: int
    """Number of key and value heads; each serves an equal number of query heads."""
    head: int
    """Dimensions of a query or key head."""
    value: int
    """Dimensions of a value head."""
    rotary: int = 0
    """How many leading dimensions of a head RoPE turns; 0 where positions enter otherwise."""
    planes: Literal["half", "adjacent"] = "half"
    """Which two dimensions a RoPE plane has: (i, i + rotary / 2), or (2i, 2i + 1)."""
    normed: bool = True
    """Whether queries and keys are normed, so that their dimensions cannot be turned."""
    fixed: bool = True
    """Whether heads cannot change places: ALiBi's slopes or norms of their own tell them apart."""
    gated: bool = True
    """Whether what heads hand on is gated dimension by dimension, so that it cannot be turned."""

    @property
    def sizes(self) -> dict[Axis, int]:
        """Axis label → size."""
        return {
            "query": self.query * self.head,
            "key_value": self.key_value * self.head,
            "head": self.head,
            "attended": self.query * self.value,
            "value": self.key_value * self.value,
        }


def whole_heads(config: Config) -> Heads | None:
    """Read the heads as most configs tell them; ``None`` where there are none.

    Nothing is known of what may be moved inside attention, so everything stays where it is.
    """
    query = config.get("num_attention_heads")
    if not isinstance(query, int):
        return None
    head = config.get("head_dim") or config.get("hidden_size", 0) // query
    if not head:
        return None
    rope = config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    key_value = config.get("num_key_value_heads") or query
    return Heads(query, key_value, head, head, rotary=int(head * share))


@dataclass(frozen=True)
class Refusal:
    """A config that cannot be grown right, or not yet."""

    when: Callable[[Config], bool]
    """Tells such a config."""
    reason: str
    """Why: the rest of a sentence that begins with the model's name."""


@dataclass(frozen=True)
class Tower:
    """Where a model that reads more than text holds its text model."""

    prefix: str = "model.language_model."
    """What stands before its tensors' names in transformers' own model."""
    stored: tuple[str, ...] = ("language_model.model.",)
    """The same in checkpoints that name them otherwise."""
    heads: tuple[str, ...] = ("lm_head.weight", "language_model.lm_head.weight")
    """What the output head is called: in transformers' own model first, then in checkpoints."""
    flat: bool = False
    """Whether config.json may hold the text model's fields at its top level."""
    rooted: Callable[[Config], int] | None = None
    """Reads from the whole config how many of the lowest blocks are given something by index."""


@dataclass(frozen=True)
class Family:
    """One model family."""

    model_type: str
    """The ``model_type`` of its config.json."""
    kinds: Kinds
    """Kind of block → its tensors, in the order of the forward pass. Most families have one."""
    embeddings: str = "model.embed_tokens.weight"
    """The token embeddings."""
    outside: tuple[str, ...] = ()
    """The other tensors before the first block, such as position embeddings."""
    final_norm: tuple[str, ...] = ("model.norm.weight",)
    """The norm after the last block."""
    optional_outside: tuple[str, ...] = ()
    """Tensors that belong to no block and may be there."""
    head: str = "lm_head.weight"
    """The output head; absent where it is tied to the embeddings."""
    stored_as: Mapping[str, str] = field(default_factory=dict)
    """Names outside all blocks that transformers changes as it loads: in memory → stored."""
    block_prefix: str = "model.layers."
    """What stands before the block's index in a tensor name."""
    depth_field: str = "num_hidden_layers"
    """The config.json field that holds the number of blocks."""
    depth_aliases: tuple[str, ...] = ()
    """Config fields that repeat the number of blocks, in configs that have them."""
    per_layer_lists: tuple[str, ...] = ()
    """Config fields that are lists (or strings) with one entry (or character) per block; a block's
    entries are its type."""
    prefix_counts: tuple[str, ...] = ()
    """Config fields that count blocks from the bottom ("the first n blocks are …")."""
    index_lists: tuple[str, ...] = ()
    """Config fields that list blocks by index."""
    trailing_field: str | None = None
    """The config field that counts the multi-token-prediction blocks stored after the last one."""
    explicit: Callable[[Config], dict[str, Any]] | None = None
    """Writes rules such as "every other block" out as lists; see ``grown_config``."""
    for_depth: Callable[[Config, int], dict[str, Any]] | None = None
    """Sets the fields that blocks read together with the number of blocks: (config, new depth)."""
    rewrite: Callable[[Config, Sequence[int]], dict[str, Any]] | None = None
    """Returns config fields of a grown model that nothing above describes, from the base's
    config.json and the base block whose type each block has."""
    pattern: Callable[[Config], Sequence[object]] | None = None
    """Says what the config makes of each block by a rule on its index that no field can override;
    a stack that would change what a kept block is made of is refused."""
    sizes: Callable[[Config, Mapping[str, tuple[int, ...]]], Mapping[Axis, int]] | None = None
    """Reads, from config and the checkpoint's shapes, sizes that are to be had nowhere else: of
    axes that share a tensor unequally, and how many groups experts form (``expert_groups``)."""
    carried: tuple[str, ...] = ()
    """Beginnings of names of tensors beside the stack that are kept as they are, such as
    multi-token-prediction modules with an index of their own."""
    heads: Callable[[Config], Heads | None] = whole_heads
    """Reads what its attention heads are like, and with it what may be moved inside attention: by
    default nothing."""
    norm_offset: float = 0.0
    """What a norm adds to its weight: Gemma's gains are 1 + weight."""
    bilinear: bool = False
    """Whether a gated FFN is linear in its up projection, so that its rows may change scale."""
    varying: frozenset[Axis] = frozenset()
    """Axis labels whose sizes may differ between blocks."""
    refusals: tuple[Refusal, ...] = ()
    """Configs that cannot be grown."""
    preload: tuple[str, ...] = ()
    """Classes of modules that use their submodules' weights without calling them."""
    embeds_apart: bool = False
    """Whether the model asks where its embeddings are before it calls them."""
    tower: Tower | None = None
    """Where it stands inside a model that reads more than text, if it does."""
    rooted: int = 0
    """How many of the lowest blocks are given something by index, and keep it."""

    @property
    def around(self) -> tuple[str, ...]:
        """The tensors that may stand outside all blocks, the output head last."""
        before = (self.embeddings, *self.outside)
        return *before, *self.final_norm, *self.optional_outside, self.head

    def is_beside(self, name: str) -> bool:
        """Whether a tensor belongs to no text model, or to none of its blocks, and is kept."""
        beside = self.tower is not None and not name.startswith(self.tower.prefix)
        return beside or name.startswith(self.carried)

    def part(self, name: str) -> str | None:
        """Return which part outside all blocks a tensor is: ``embeddings``, ``norm``, ``head``."""
        if name in self.final_norm:
            return "norm"
        parts = {self.embeddings: "embeddings", self.head: "head"}
        return parts.get(name.removesuffix(".bias") + ".weight" if name.endswith(".bias") else name)

    def name(self, index: int, suffix: str) -> str:
        """Return the full name of a block's tensor."""
        return f"{self.block_prefix}{index}.{suffix}"

    def split(self, name: str) -> tuple[int, str] | None:
        """Split a tensor name into block index and suffix; ``None`` if it is outside all blocks."""
        match = re.fullmatch(re.escape(self.block_prefix) + r"(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else None
