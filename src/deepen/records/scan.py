"""What ``scan`` was asked for, and what it found."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deepen.records.growth import BaseIdentity
from deepen.records.record import Count, Measure, Positive, Record

Verdict = Literal["helps", "unproven", "none"]
"""Whether a span helps: it does, and text that did not choose it says so too; it seemed to, and
that may be luck; or even the best one does not."""
Chance = Annotated[float, Field(ge=0, le=1)]


class ScanRequest(Record):
    """What determines the numbers of a scan, apart from the model and the text."""

    longest: int = Field(default=8, ge=1, le=4096)
    """Blocks of the longest span."""
    stride: int = Field(default=1, ge=1, le=4096)
    """Spans begin and end at multiples of this many blocks."""
    times: int = Field(default=1, ge=1, le=64)
    """How often a span is repeated; 1 makes one copy of each of its blocks."""
    max_tokens: int = Field(default=4096, ge=256, le=2**20)
    """Tokens of the text that are read, at most."""
    sequence_length: int = Field(default=128, ge=16, le=2**16)
    """Tokens in a sequence, the opening included."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the signs that are drawn for the chance of luck."""


class SpanScore(Record):
    """What repeating one span does to the loss."""

    first: Count
    """Its first block."""
    last: Count
    """Its last block."""
    choosing: float
    """Loss with the span repeated minus the base's, in nats per token, on the half that chooses."""
    confirming: float
    """The same on the half that confirms."""
    chance: Chance
    """Chance that the best of all spans is as good as this one on the half that chooses if none of
    them helps."""
    losses: list[float]
    """Loss of each sequence with the span repeated, in nats per token."""


class Choice(Record):
    """The span that one half of the text chose, and what the other half says of it."""

    first: Count
    """Its first block."""
    last: Count
    """Its last block."""
    choosing: float
    """Mean difference on the half that chose it, in nats per token: as the best, too good."""
    chance: Chance
    """Chance that a best of this many spans is as good by luck."""
    confirming: float
    """Mean difference on the other half."""
    low: float | None
    """Lower end of its 95 % interval by Student's t, over sequences."""
    high: float | None
    """Upper end."""


class SpanTask(Record):
    """A metric of one task with a span repeated, beside the base's, over the same examples."""

    first: Count
    """First block of the span."""
    last: Count
    """Last block."""
    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    base: float
    """The base's mean over examples."""
    value: float
    """The mean with the span repeated."""
    low: float | None
    """Lower end of the 95 % interval of the difference, paired over examples."""
    high: float | None
    """Upper end."""
    examples: Count
    """Number of examples."""
    higher_is_better: bool
    """Direction of the metric."""


class ScanRecord(Record):
    """What ``scan`` found: scan.json."""

    format: Literal[1] = 1
    """Version of this schema."""
    base: BaseIdentity
    """The model, of which nothing was changed."""
    depth: int = Field(ge=1, le=4096)
    """Number of its blocks."""
    request: ScanRequest
    """What was asked for."""
    text: str
    """Name of the text."""
    text_sha256: str
    """SHA-256 of all of it."""
    tokens: Positive
    """Tokens that were predicted, of both halves."""
    base_losses: list[float] = Field(min_length=4)
    """The base's loss of each sequence in the order of the text, in nats per token; the first one,
    the third and so on choose, the others confirm."""
    spans: list[SpanScore] = Field(min_length=1)
    """Every span that was tried, from bottom to top."""
    left_out: Count = 0
    """Spans of the grid that ``grow`` refuses, and that were not tried."""
    left_out_because: str | None = None
    """Why the first of these is refused."""
    choice: Choice
    """The span that was chosen."""
    flips: Positive
    """How many assignments of signs the chances were counted over."""
    exact: bool
    """Whether these are all that there are."""
    verdict: Verdict
    """Whether it helps."""
    sentence: str
    """The verdict in words."""
    command: str
    """What builds the model with the chosen span repeated."""
    tasks: list[SpanTask] = Field(default_factory=list)
    """Tasks, if some were asked for: of the base and of the few best spans by loss."""
    block_runs: Count
    """How many blocks ran on all of the text; those of the tasks are not counted."""
    passes: Measure
    """The same work, the output head's with it, in forward passes of the whole base."""
    device: str
    """Type of device."""
    wall_seconds: Measure
    """Time taken, after a kill that of the last part alone."""
    peak_bytes: Count
    """Peak resident memory of the process, the libraries' own included."""
    versions: dict[str, str]
    """Software."""

    @property
    def choosing(self) -> int:
        """Number of sequences in the half that chooses."""
        return (len(self.base_losses) + 1) // 2

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Hold spans to the base, to the text and to each other."""
        named = [(span.first, span.last) for span in self.spans]
        if len(set(named)) < len(named):
            raise ValueError("a span stands there twice")
        if not all(first <= last < self.depth for first, last in named):
            raise ValueError("a span is none, or reaches beyond the base")
        if any(len(span.losses) != len(self.base_losses) for span in self.spans):
            raise ValueError("a span has not one loss for each sequence")
        chosen = {(task.first, task.last) for task in self.tasks}
        if not chosen | {(self.choice.first, self.choice.last)} <= {*named}:
            raise ValueError("a span was chosen that was not tried")
        return self
