"""Who learned most and forgot least, in a sentence."""

from collections.abc import Sequence

from deepen.comparison.balance import front
from deepen.records.evaluation import EvalRecord, Side
from deepen.records.study import ArmRecord


def loss_on(record: EvalRecord, side: Side) -> float:
    """Return the loss on the text of one side, in nats per token."""
    return next(text.loss_nats_per_token for text in record.texts if text.side == side)


def verdict(records: Sequence[ArmRecord]) -> str:
    """Say who learned most, who forgot least, and how little one seed shows."""
    most = min(records, key=lambda record: loss_on(record.after, "new"))
    least = min(records, key=lambda record: loss_on(record.after, "old"))
    unbeaten = ", ".join(front(records, [record.arm for record in records]))
    first, longest = records[0], max(record.train.tokens for record in records)
    return (
        f"{most.arm} learned most, {least.arm} forgot least; no other arm is better on both texts "
        f"than {unbeaten}. Losses are nats per token on {first.after.texts[0].tokens:,} held-out "
        f"tokens of each text. Every arm had the FLOPs that {first.arm} needs for "
        f"{first.train.tokens:,} tokens, so that cheaper ones read more, up to {longest:,}. One "
        f"seed, a short run and learning rates that nobody searched for: a study of your own needs "
        f"more."
    )
