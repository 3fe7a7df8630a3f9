"""Learned and forgotten, side by side: what the demo ends with."""

from collections.abc import Sequence

from rich.table import Table

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


def unbeaten(records: Sequence[ArmRecord]) -> list[str]:
    """Name the arms that no other arm beats in one loss without losing in the other."""

    def scores(record: ArmRecord) -> tuple[float, float]:
        return loss_on(record.after, "new"), loss_on(record.after, "old")

    def beats(one: ArmRecord, other: ArmRecord) -> bool:
        pairs = list(zip(scores(one), scores(other), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [r.arm for r in records if not any(beats(other, r) for other in records)]


def verdict(records: Sequence[ArmRecord]) -> str:
    """Say who learned most, who forgot least, and how little one seed shows."""
    most = min(records, key=lambda record: loss_on(record.after, "new"))
    least = min(records, key=lambda record: loss_on(record.after, "old"))
    front = ", ".join(unbeaten(records))
    return (
        f"{most.arm} learned most, {least.arm} forgot least; no other arm is better on both texts "
        f"than {front}. Losses are nats per token on {records[0].after.texts[0].tokens:,} held-out "
        f"tokens of each text; all arms read the same {records[0].train.tokens:,} tokens of new "
        f"text once, in the same order. One seed, a short "
        f"run and learning rates that nobody searched for: a study of your own needs more."
    )
