"""What the demo records, and the table made of it; the table computes nothing."""

from pydantic import Field
from rich.table import Table

from deepen.demo.base import BaseRecord
from deepen.demo.recipe import Recipe
from deepen.demo.training import Score, Training
from deepen.records import Record


class DemoRow(Record):
    """One model of the comparison."""

    name: str
    """The method that grew it, or what was done to the base instead."""
    parameters: int
    """Parameters; tied ones count once."""
    new_parameters: int = 0
    """Those of the new blocks."""
    before: Score
    """On held-out text, before continued training."""
    after: Score | None = None
    """After it; ``None`` if the model was not trained on."""
    training: Training | None = None
    """The continued training."""
    grow_seconds: float | None = None
    """Time that growing took."""
    max_abs_logit_difference: float | None = None
    """Largest difference of its logits from the base's, before training."""
    kl_nats_per_token: float | None = None
    """Mean KL(base ‖ grown) before training."""
    notes: list[str] = Field(default_factory=list)
    """What ``grow`` had to say."""


class DemoResults(Record):
    """Everything about one run of the demo, as it stands in results.json."""

    recipe: Recipe
    """All its numbers."""
    base: BaseRecord
    """The base."""
    base_was_cached: bool
    """Whether an earlier run had trained it."""
    rows: list[DemoRow]
    """The base first, then every method."""
    threads: int
    """CPU threads that computed it."""
    versions: dict[str, str]
    """Versions of the software."""
    wall_seconds: float
    """Time that the run took."""


def table(rows: list[DemoRow]) -> Table:
    """Show the comparison."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    shown.add_column("method")
    shown.add_column("start", no_wrap=True)
    for column in ("parameters", "new", "trainable", "perplexity\nbefore", "\nafter", "seconds"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        training, after = row.training, row.after
        shown.add_row(
            row.name,
            _start(row),
            _millions(row.parameters),
            _millions(row.new_parameters) if row.new_parameters else "–",
            _millions(training.trainable_parameters) if training else "–",
            f"{row.before.perplexity:.3f}",
            f"{after.perplexity:.3f}" if after else "–",
            f"{training.wall_seconds:.0f}" if training else "–",
        )
    return shown


def _start(row: DemoRow) -> str:
    """Say how a grown model differs from the base before training."""
    if row.max_abs_logit_difference is None:
        return "–"
    if row.max_abs_logit_difference == 0.0:
        return "= base"
    return f"KL {row.kl_nats_per_token:.2f}"


def _millions(count: int) -> str:
    """Write a number of parameters for reading."""
    return f"{count / 1e6:.2f}M"
