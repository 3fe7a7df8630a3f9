"""What ``evaluate`` found."""

from typing import Literal

from deepen.records.record import Count, Measure, Record

Side = Literal["new", "old"]
"""What a score tells: what was learned, on new text or a new task, or what was kept of the old."""
Counted = Literal["all", "answers"]
"""Which tokens a loss is taken on: all that can be predicted, or the answers in chat rows."""


class TextScore(Record):
    """A model's loss on a text file."""

    file: str
    """Name of the file."""
    sha256: str
    """Hash of its content."""
    tokens: Count
    """Tokens that were predicted."""
    text_bytes: Count
    """UTF-8 bytes that those tokens stand for."""
    loss_nats_per_token: float
    """Mean loss."""
    token_perplexity: float
    """Its exponential."""
    bits_per_byte: float
    """Loss in bits over all tokens, divided by the bytes: comparable between tokenizers."""
    counted: Counted = "all"
    """Which tokens were predicted: those of documents, or of the answers in chat rows alone."""
    side: Side | None = None
    """Whether the text is new or old to the base, where a study says so."""


class TaskScore(Record):
    """A metric of one lm-evaluation-harness task."""

    task: str
    """Name of the task."""
    metric: str
    """Name of the metric, for example ``acc`` or ``word_perplexity``."""
    value: float
    """Its value."""
    stderr: float | None
    """Its standard error, where the harness gives one."""
    samples: Count
    """Number of examples."""
    shots: Count
    """Number of examples in the prompt."""
    higher_is_better: bool
    """Direction of the metric."""
    task_hash: str
    """SHA-256 of the task's resolved configuration."""
    version: str
    """The task's own version."""
    side: Side | None = None
    """Whether the task is new or old to the base, where a study says so."""


class EvalRecord(Record):
    """What ``evaluate`` found."""

    model: str
    """Hub id or the folder's name."""
    fingerprint: str
    """The checkpoint's fingerprint."""
    texts: list[TextScore]
    """Losses on text files."""
    tasks: list[TaskScore]
    """Scores of tasks, one entry per metric."""
    seed: int
    """Seed of few-shot sampling and bootstrap."""
    device: str
    """Type of device."""
    dtype: str
    """Arithmetic of the forward pass, for example ``float32``."""
    sequence_length: Count
    """Tokens that the model sees at once."""
    batch_size: Count
    """Sequences in a forward pass."""
    wall_seconds: Measure
    """Time taken."""
    versions: dict[str, str]
    """Software."""
