"""The cards (README.md) of a pack and of a combined model."""

from pathlib import Path

from deepen.growth.base_files import BASE_FILES
from deepen.growth.card import inherited_from
from deepen.packs.grown import Grown
from deepen.records.growth import BaseIdentity, Step
from deepen.records.pack import PackRecord

_PACK = """\
# The new blocks of {name}

{new} Transformer blocks, {trained}, that go between those of {base}, made by {methods}. This is not
a model by itself. On its base it is {name} again, byte for byte:

```bash
deepen attach BASE THIS OUT
```

- Base: {base}, fingerprint `{fingerprint}`; no other fits
- New blocks, counted from 0 in the model of {depth}: {blocks}
{also}- Size: {weight_bytes:,} of {grown_weight_bytes:,} bytes of weights

`pack.json` says what belongs where; `files/config.json` holds the whole lineage under `deepen`.
"""

_COMBINED = """\
# {base} with the new blocks of {packs}

This model is {base} with {new} new Transformer blocks, combined from two packs by `{how}`. It loads
with `{loader}.from_pretrained` and needs no custom code.

- Blocks: {base_depth} → {depth}
- New blocks, counted from 0: {blocks}

The whole lineage, with that of both packs, stands in `config.json` under `deepen`; what the base's
own files were, in `{base_files}`.
"""


def pack_card(record: PackRecord, grown: Grown) -> str:
    """Write a pack's card.

    Args:
        record: The pack.
        grown: What it was taken off; licence and languages are taken from its card.
    """
    made_by = ", then ".join(f"`{step.method}` ({step.reference})" for step in grown.steps)
    changed = ", ".join(f"`{name}`" for name in record.changed[:8])
    more = f" and {len(record.changed) - 8} more" if len(record.changed) > 8 else ""
    text = _PACK.format(
        name=record.name,
        new=len(record.new_blocks),
        trained="trained" if grown.trainings else "not trained yet",
        base=_link(record.base),
        methods=made_by,
        fingerprint=record.base.fingerprint,
        depth=grown.plan.depth,
        blocks=", ".join(map(str, record.new_blocks)),
        also=f"- Also trained, and in the pack: {changed}{more}\n" if changed else "",
        weight_bytes=record.weight_bytes,
        grown_weight_bytes=record.grown_weight_bytes,
    )
    return _front(grown.folder, record.base, ["pack"]) + text


def combined_card(step: Step, packs: list[str], base: Path, loader: str) -> str:
    """Write a combined model's card.

    Args:
        step: How it was made.
        packs: The packs' names.
        base: The base's folder; licence and languages are taken from its card.
        loader: transformers' class that loads it.
    """
    text = _COMBINED.format(
        loader=loader,
        base=_link(step.base),
        packs=" and ".join(packs),
        new=len(step.new_blocks),
        how=step.method,
        base_depth=len(step.plan) - len(step.new_blocks),
        depth=len(step.plan),
        blocks=", ".join(map(str, step.new_blocks)),
        base_files=BASE_FILES,
    )
    return _front(base, step.base, [step.method]) + text


def _link(base: BaseIdentity) -> str:
    """Name a base, with a link if it is on the hub."""
    on_hub = f"[{base.name}](https://huggingface.co/{base.name})"
    return on_hub if base.revision else base.name


def _front(folder: Path, base: BaseIdentity, tags: list[str]) -> str:
    """Write a card's front matter; licence and languages are those of the card in a folder."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base.name if base.revision else None,
        tags=["deepen", "depth-up-scaling", *tags],
        **inherited_from(folder),
    )
    return f"---\n{data.to_yaml()}\n---\n\n"
