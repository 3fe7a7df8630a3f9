"""Text models inside models that read more than text: the families of their towers.

A tower is a family's table under other names: the blocks stand behind another prefix, and what the
config says of them in a section of its own. Everything else, the part that sees and the projector,
is carried along as it is. A whole model is listed here once a tiny one of it has been grown, and
has computed with an image what it did before.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from deepen.base.anatomy.families import family_named
from deepen.base.anatomy.families.llama import MULTIMODAL
from deepen.base.anatomy.family import Config, Family, Tower

SECTION = "text_config"
"""The field of config.json that describes the text model."""

_LLAVA = Tower()
_QWEN_2 = Tower(stored=("model.",), flat=True)


def _injected(config: Config) -> int:
    """Count the lowest blocks that Qwen3-VL adds its vision tower's inner states to."""
    return len(config["vision_config"]["deepstack_visual_indexes"])


TOWERS: Mapping[str, Tower] = {
    **dict.fromkeys(("gemma3", "llava"), _LLAVA),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN_2),
    "qwen3_vl": Tower(rooted=_injected),
}
"""``model_type`` of a whole model → where its text model is."""

_ONLY_INSIDE = {family.model_type: family for family in MULTIMODAL}


def text_section(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the part of a whole model's config.json that describes its text model.

    Returns:
        ``None`` where there is none.
    """
    section = config.get(SECTION)
    if isinstance(section, Mapping):
        return section
    if TOWERS[config["model_type"]].flat:
        return {field: value for field, value in config.items() if not field.endswith("_config")}
    return None


def with_text_section(config: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole model's config.json with another description of its text model.

    Args:
        config: The config.json.
        section: What shall stand where ``text_section`` reads; the text model stays of its family.
    """
    before = text_section(config) or {}
    own = {field: before[field] for field in ("model_type",) if field in before}
    changed = {field: value for field, value in section.items() if field != "model_type"} | own
    if SECTION in config:
        return {**config, SECTION: changed}
    return {field: value for field, value in config.items() if field not in before} | changed


def tower_family(tower: Tower, model_type: str) -> Family | None:
    """Return the table of a text model inside a larger one; ``None`` if no table has it.

    Args:
        tower: Where it stands.
        model_type: Its family.
    """
    family = _ONLY_INSIDE.get(model_type) or family_named(model_type)
    if family is None:
        return None
    own = family.block_prefix.partition(".")[0] + "."

    def moved(name: str) -> str:
        return tower.prefix + name.removeprefix(own) if name.startswith(own) else name

    return replace(
        family,
        block_prefix=moved(family.block_prefix),
        embeddings=moved(family.embeddings),
        outside=tuple(map(moved, family.outside)),
        final_norm=tuple(map(moved, family.final_norm)),
        optional_outside=tuple(map(moved, family.optional_outside)),
        carried=tuple(map(moved, family.carried)),
        # torch's own, in some vision towers.
        preload=(*family.preload, "MultiheadAttention"),
        tower=tower,
    )


def as_stored(family: Family, tower: Tower, shapes: Collection[str]) -> Family:
    """Return the table of a text model inside a larger one with the names of a checkpoint.

    Args:
        family: The table, with the names of transformers' own model.
        tower: Where it stands.
        shapes: The checkpoint's tensors.
    """
    stack = family.block_prefix.removeprefix(tower.prefix)
    prefixes = (tower.prefix, *tower.stored)
    there = (p for p in prefixes if any(name.startswith(p + stack) for name in shapes))
    prefix = next(there, tower.prefix)

    def named(name: str) -> str:
        rest = name.removeprefix(tower.prefix)
        return name if rest == name else prefix + rest

    return replace(
        family,
        block_prefix=prefix + stack,
        embeddings=named(family.embeddings),
        outside=tuple(map(named, family.outside)),
        final_norm=tuple(map(named, family.final_norm)),
        optional_outside=tuple(map(named, family.optional_outside)),
        head=next((head for head in tower.heads if head in shapes), family.head),
        tower=replace(tower, prefix=prefix),
    )
