"""The trained model's card: the grown model's, and a section on what it was trained on."""

from deepen.growth.card import without_untrained
from deepen.records.training import TrainRecord

_STAGES = {"cpt": "Continual pre-training", "sft": "Supervised fine-tuning"}


def trained_card(before: str, record: TrainRecord) -> str:
    """Write the card.

    Args:
        before: The card of the checkpoint that was trained; empty if it has none.
        record: The training, its scores apart.
    """
    kept = without_untrained(before).rstrip()
    return (kept + "\n\n" if kept else "") + _section(record)


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
        f"({share:.1%}), {_what(record)}\n"
        f"- Last training loss: {loss:.4f} nats per token\n"
    )


def _what(record: TrainRecord) -> str:
    """Say what trained."""
    blocks = f"blocks {', '.join(map(str, record.trainable_blocks)) or 'none'}"
    training = record.recipe["training"]
    if lora := training.get("lora"):
        return f"as adapters of rank {lora['rank']} (LoRA, merged) on {blocks}"
    if neurons := training.get("neurons"):
        return f"the last {neurons:,} neurons of every FFN"
    return blocks
