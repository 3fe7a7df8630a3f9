"""The model card (README.md) of a grown checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepen.base.folder import is_own
from deepen.planning.pattern import BROKEN_PATTERN
from deepen.records.growth import GrowRecord

INHERITED = ("license", "license_name", "license_link", "language")
"""What a card's front matter says that is true of a grown model too."""

_TEMPLATE = """\
# {name}, grown from {base_depth} to {depth} blocks

This model is {base} with {new} new Transformer blocks, made by `{method}` ({reference}) with deepen
{version}. It loads with `{loader}.from_pretrained` and needs no custom code.

{remarks}

| | base | this model |
|---|---|---|
| blocks | {base_depth} | {depth} |
| parameters | {base_parameters:,} | {parameters:,} |
| new parameters | | {new_parameters:,} |

- New blocks, counted from 0: {new_blocks}
- Options: {options}
- Seed: {seed}

The whole lineage stands in `config.json` under `deepen`.

{how_to_train}
{training}
"""

_TEXT_ALONE = "AutoModelForCausalLM"
_HOW_TO_TRAIN = "## How to train it\n"

_IDENTITY = (
    "**It has not been trained yet.** Until it is, it computes exactly what the base computes: the "
    "new blocks add nothing to the residual stream. `deepen verify BASE THIS` shows it."
)
_MOVED = (
    "**It has not been trained yet, and it needs to be:** the new blocks change what the model "
    "computes. `deepen verify BASE THIS` says how far it moved."
)
_REPEATED = (
    "**It has not been trained, and is not meant to be:** blocks of the base pass twice or more, "
    "and the model computes something else than the base. `deepen verify BASE THIS` says how far "
    "it moved; measure what that is worth on your own task."
)
_QUANTISE = (
    "**Train it before you quantise it:** the output projections of the new blocks are zero, and "
    "some quantisers divide by the largest value of a group. To quantise it untrained, grow with "
    "`--set output_noise=0.001`."
)
_QUANTISED = (
    "**Its weights are quantised ({quantised}),** the base's bit for bit; new blocks are copies in "
    "the same numbers, with output projections of zero where they add nothing."
)
_TRAIN_UNQUANTISED = (
    "deepen does not train quantised weights. To train new blocks, grow the unquantised base."
)
_TRAIN_NEW = """\
Train the new blocks only and freeze everything else:

```python
new = set(model.config.deepen["new_blocks"])
model.requires_grad_(False)
for index, block in enumerate(model.get_submodule("{blocks}")):
    block.requires_grad_(index in new)
```"""
_TRAIN_NOTHING = (
    "It was grown to be used as it is. To train it all the same, name what to train, for example "
    "`training.trains=new_blocks`."
)
_TRAIN_ALL = "Train everything, as the method's paper does."


def model_card(
    base: Path,
    record: GrowRecord,
    blocks: str,
    quantised: str | None = None,
    loader: str = _TEXT_ALONE,
) -> str:
    """Write the card: what was done, and how to train the result.

    Args:
        base: The base's folder; licence and languages are taken from its card.
        record: The growth.
        blocks: The path of the blocks in transformers' model.
        quantised: How its weights are quantised, if they are.
        loader: transformers' class that loads it.
    """
    from huggingface_hub import ModelCardData

    step = record.step
    hub_id = step.base.name if step.base.revision else None
    inherited = inherited_from(base, (*INHERITED, "base_model"))
    parent = inherited.pop("base_model", None)
    # A folder has no name on the hub, but its own card may say what it was made from.
    made_from = hub_id or parent
    data = ModelCardData(
        base_model=made_from,
        base_model_relation="finetune" if made_from else None,
        library_name="transformers",
        pipeline_tag="text-generation" if loader == _TEXT_ALONE else "image-text-to-text",
        tags=["deepen", "depth-up-scaling", step.method],
        **inherited,
    )
    options = ", ".join(f"{key} = {value}" for key, value in record.chosen_options.items())
    how = {
        "new_blocks": _TRAIN_NEW.format(blocks=blocks),
        "everything": _TRAIN_ALL,
        "nothing": _TRAIN_NOTHING,
    }
    text = _TEMPLATE.format(
        name=step.base.name.rpartition("/")[2],
        base=f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else step.base.name,
        base_depth=record.base_depth,
        depth=record.depth,
        new=len(step.new_blocks),
        method=step.method,
        reference=step.reference,
        version=step.versions["deepen"],
        loader=loader,
        remarks="\n\n".join(_remarks(record, quantised)),
        base_parameters=record.base_parameters,
        parameters=record.parameters,
        new_parameters=record.new_parameters,
        new_blocks=", ".join(map(str, step.new_blocks)),
        options=options or "the method's defaults",
        seed=step.seed,
        how_to_train=_HOW_TO_TRAIN,
        training=_TRAIN_UNQUANTISED if quantised else how[step.trains],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def inherited_from(base: Path, fields: Sequence[str] = INHERITED) -> dict[str, Any]:
    """Return what the front matter of a checkpoint's card says, in words and lists of words."""
    try:
        front, _ = front_matter(read_card(base))
    except ValueError:
        return {}
    return {field: front[field] for field in fields if _is_words(front.get(field))}


def _is_words(value: object) -> bool:
    """Whether a value of front matter is a word or a list of them."""
    entries = value if isinstance(value, list) else [value]
    return all(isinstance(entry, str) for entry in entries)


def read_card(folder: Path) -> str:
    """Return a checkpoint's own card, or nothing; what is not UTF-8 is marked."""
    card = folder / "README.md"
    if not (card.is_file() and is_own(card, folder)):
        return ""
    return card.read_text(encoding="utf-8-sig", errors="replace")


def front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Divide a card into what its front matter says and the text below.

    Raises:
        ValueError: It cannot be read.
    """
    from huggingface_hub import ModelCard

    if not card.startswith("---"):
        return {}, card
    try:
        loaded: Any = ModelCard(card, ignore_metadata_errors=True)
        return loaded.data.to_dict(), loaded.text
    except Exception as error:  # YAML has many types, for all that people write by hand
        raise ValueError(" ".join(str(error).split())[:100]) from None


def _remarks(record: GrowRecord, quantised: str | None) -> list[str]:
    """Say what a user should know first, a paragraph each."""
    moved = _REPEATED if record.step.trains == "nothing" else _MOVED
    promise = [_IDENTITY, _QUANTISE] if record.step.preserves_function else [moved]
    if quantised:
        promise = [*promise[:1], _QUANTISED.format(quantised=quantised)]
    return [*promise, *([BROKEN_PATTERN] if record.keeps_pattern is False else [])]


def without_untrained(card: str) -> str:
    """Return a grown model's card without what is true of it only until it is trained."""
    for promise in (_IDENTITY, _QUANTISE, _MOVED, _REPEATED):
        card = card.replace(f"{promise}\n\n", "")
    kept, _, section = card.partition(_HOW_TO_TRAIN)
    return kept + "".join(section.partition("\n## ")[1:])
