"""The trained model's card: the grown model's, and a section on what it was trained on."""

import re

from deepen.growth.card import front_matter, without_untrained
from deepen.records.training import TrainRecord

_STAGES = {"cpt": "Continual pre-training", "sft": "Supervised fine-tuning"}
_TAGS = {"cpt": "continual-pretraining", "sft": "sft"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def trained_card(before: str, record: TrainRecord, hub_id: str | None = None) -> str:
    """Write the card.

    Args:
        before: The card of the checkpoint that was trained; empty if it has none.
        record: The training, its scores apart.
        hub_id: What that checkpoint is called on the hub, if it came from there.
    """
    kept = without_untrained(before).rstrip()
    text = (kept + "\n\n" if kept else "") + _section(record)
    return _with_metadata(text, record, hub_id)


def _with_metadata(card: str, record: TrainRecord, hub_id: str | None) -> str:
    """Return a card whose front matter is true of the trained model; one is begun if there is none.

    Licence, languages and whatever else its authors wrote stay; scores of the model before do not.
    """
    from huggingface_hub import ModelCardData

    try:
        front, text = front_matter(card)
    except ValueError:
        return card  # Nobody can read its front matter, and a finished run has to end well.
    text = text.lstrip("\n")
    front.pop("model-index", None)
    if hub_id is not None:
        front |= {"base_model": hub_id, "base_model_relation": "finetune"}
    named = [name for source in record.sources for name in source.name.split(", ")]
    datasets = [*_listed(front.get("datasets")), *filter(_HUB_ID.fullmatch, named)]
    front |= {"datasets": [*dict.fromkeys(datasets)]} if datasets else {}
    front.setdefault("library_name", "transformers")
    tags = [*_listed(front.get("tags")), "deepen", _TAGS[record.stage]]
    front["tags"] = [*dict.fromkeys(tags)]
    data = ModelCardData(ignore_metadata_errors=True, **front)
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _listed(value: object) -> list[str]:
    """Return the words that front matter holds as one value or several."""
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str)]


def _section(record: TrainRecord) -> str:
    """Tell of the data, the budget and what was trained."""
    shown = " (share {:.3g})" if len(record.sources) > 1 else ""
    names = [source.name + shown.format(source.share) for source in record.sources]
    share = record.trainable_parameters / record.parameters
    loss = record.curve[-1].loss_nats_per_token if record.curve else float("nan")
    return (
        f"## {_STAGES[record.stage]}\n\n"
        f"- Data: {', '.join(names)}, sequences of {record.sequence_length} tokens, order from "
        f"seed {record.recipe['data']['seed']}\n"
        f"- Budget: {record.steps:,} steps, {record.tokens:,} tokens\n"
        f"- Trained: {record.trainable_parameters:,} of {record.parameters:,} parameters "
        f"({share:.1%}), {_what(record)}\n{_phases(record)}{_averaged(record)}"
        f"- Last training loss: {loss:.4f} nats per token\n"
    )


def _phases(record: TrainRecord) -> str:
    """Say what trained when, if it was not one thing all the time."""
    told = [
        f"{phase.what} for {phase.steps:,} steps, at a learning rate of up to "
        f"{phase.learning_rate:g}"
        for phase in record.phases
    ]
    return f"- In phases: {'; then '.join(told)}\n" if told else ""


def _averaged(record: TrainRecord) -> str:
    """Say over which steps the weights are averaged, if they are."""
    steps = ", ".join(f"{step:,}" for step in record.averaged_steps)
    return f"- Weights: the mean of those after steps {steps}\n" if steps else ""


def _what(record: TrainRecord) -> str:
    """Say what trained."""
    blocks = f"blocks {', '.join(map(str, record.trainable_blocks)) or 'none'}"
    training = record.recipe["training"]
    if lora := training.get("lora"):
        return f"as adapters of rank {lora['rank']} (LoRA, merged) on {blocks}"
    if neurons := training.get("neurons"):
        return f"the last {neurons:,} neurons of every FFN"
    return blocks
