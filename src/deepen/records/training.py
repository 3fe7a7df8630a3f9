"""What ``train`` did."""

from typing import Any, Literal

from pydantic import Field

from deepen.records.record import Record


class LossPoint(Record):
    """One point of a training curve."""

    step: int
    """Optimizer steps taken."""
    tokens: int
    """Tokens seen, over all processes."""
    wall_seconds: float
    """Time since training began, earlier runs of a resumed one counted in."""
    loss_nats_per_token: float
    """Mean training loss since the last point."""
    learning_rate: float
    """Learning rate of that step."""


class StepTime(Record):
    """Where the time of an optimizer step goes: medians over steps, the first ones left out."""

    forward_seconds: float
    """Forward passes of the step."""
    backward_seconds: float
    """Backward passes of the step."""
    optimizer_seconds: float
    """Clipping and update."""
    total_seconds: float
    """From the start of one step to the start of the next, data loading included."""


class TrunkRecord(Record):
    """What was kept of the frozen blocks below the lowest trained one."""

    blocks: int
    """How many blocks were not run in training."""
    sequences: int
    """Sequences whose states were read."""
    computed: int
    """Those of them whose states this run had to compute first."""
    stored_bytes: int
    """Bytes on the disk."""
    seconds: float
    """Time of that first pass; not part of the training time."""


class ProtectRecord(Record):
    """What was protected for the sake of an old text."""

    layers: int
    """Linear layers whose updates left its directions alone."""
    tokens: int
    """Tokens of it that were read."""
    directions: float
    """Mean share of a layer's input directions that were protected, 0 to 1."""
    seconds: float
    """Time to find them; not part of the training time."""


class SourceRecord(Record):
    """What was seen of one source of the training data."""

    name: str
    """Names of files and folders, or the hub data set's id."""
    share: float
    """Share of the sequences that was asked for; 1 if there is no mixture."""
    items: int
    """Different sequences, or rows, that it holds."""
    sequences: int
    """Sequences seen, each as often as it was."""
    tokens: int
    """Tokens seen."""


class TrainRecord(Record):
    """What ``train`` did."""

    stage: Literal["cpt", "sft"]
    """Continual pre-training or supervised fine-tuning."""
    model: str
    """What was trained: hub id or the folder's name."""
    output: str
    """Run folder; the trained model lies in its ``model`` folder."""
    seed: int
    """Seed of data order and of everything else random."""
    processes: int
    """Number of training processes."""
    device: str
    """Type of device."""
    precision: Literal["float32", "bfloat16"]
    """Arithmetic of the forward and backward pass."""
    parameters: int
    """All parameters; tied ones count once."""
    trainable_parameters: int
    """Parameters that were trained."""
    trainable_blocks: list[int]
    """Blocks that were trained."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens seen, over all processes."""
    sequence_length: int
    """Tokens in a sequence."""
    sources: list[SourceRecord] = Field(default_factory=list)
    """What was seen of which data, the main source first."""
    curve: list[LossPoint]
    """Loss over the run."""
    wall_seconds: float
    """Training time, earlier runs of a resumed one counted in."""
    tokens_per_second: float
    """Throughput of training alone, over all processes."""
    step_time: StepTime
    """Where a step's time goes."""
    peak_bytes: int
    """Peak memory: of the GPU where there is one, else resident memory of the process."""
    flops_per_token: float
    """Model FLOPs of one trained token by our own formula, freezing taken into account."""
    matmul_flops_per_second: float
    """Rate of a large matrix product measured on this machine at the start of the run."""
    utilisation: float
    """Model FLOPs per second as a share of that rate, blocks that were not run left out."""
    resumed_from_step: int | None
    """The step that the last restart began at."""
    trunk: TrunkRecord | None = None
    """What was kept of the frozen trunk; ``None`` if every block was run in every step."""
    protect: ProtectRecord | None = None
    """What was protected; ``None`` if nothing was."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    versions: dict[str, str]
    """Software."""
