"""Learned and forgotten, side by side: what the demo ends with."""

from collections.abc import Sequence

from rich.table import Table

from deepen.comparison.balance import front
from deepen.records.evaluation import EvalRecord, Side
from deepen.records.study import ArmRecord
from deepen.report.terminal import columns, size


def loss_on(record: EvalRecord, side: Side) -> float:
    """Return the loss on the text of one side, in nats per token."""
    return next(text.loss_nats_per_token for text in record.texts if text.side == side)


def change(record: ArmRecord, side: Side) -> float:
    """Return how training changed the loss on the text of one side."""
    return loss_on(record.after, side) - loss_on(record.before, side)


def learned_and_forgotten(records: Sequence[ArmRecord]) -> Table:
    """Show each arm's loss on new text and on old, its change, and what the arm cost."""
    table = columns("arm", "new text", "learned", "old text", "forgotten", "trained", "s", "memory")
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap = True
    first = records[0]
    before = [f"{loss_on(first.before, side):.3f}" for side in ("new", "old")]
    table.add_row("before", before[0], "", before[1], "", "", "", "", style="dim")
    for record in records:
        trained = record.train
        table.add_row(
            record.arm,
            f"{loss_on(record.after, 'new'):.3f}",
            f"{-change(record, 'new'):+.3f}",
            f"{loss_on(record.after, 'old'):.3f}",
            f"{change(record, 'old'):+.3f}",
            f"{trained.trainable_parameters / 1e6:.3g}M",
            f"{trained.wall_seconds + (trained.trunk.seconds if trained.trunk else 0):.0f}",
            size(trained.peak_bytes),
        )
    return table


def verdict(records: Sequence[ArmRecord]) -> str:
    """Say who learned most, who forgot least, and how little one seed shows."""
    most = min(records, key=lambda record: loss_on(record.after, "new"))
    least = min(records, key=lambda record: loss_on(record.after, "old"))
    unbeaten = ", ".join(front(records, [record.arm for record in records]))
    first = records[0]
    return (
        f"{most.arm} learned most, {least.arm} forgot least; no other arm is better on both texts "
        f"than {unbeaten}. Losses are nats per token on {first.after.texts[0].tokens:,} held-out "
        f"tokens of each text; all arms read the same {first.train.tokens:,} tokens of new text "
        f"once, in the same order. One seed, a short run and learning rates that nobody searched "
        f"for: a study of your own needs more."
    )
