"""What ``train`` did."""

from typing import Annotated, Any, Literal

from pydantic import Field

from deepen.records.record import Count, Measure, Positive, Record


class LossPoint(Record):
    """One point of a training curve."""

    step: Count
    """Optimizer steps taken."""
    tokens: Count
    """Tokens seen, over all processes."""
    wall_seconds: Measure
    """Time since training began, earlier runs of a resumed one counted in."""
    loss_nats_per_token: float
    """Mean training loss since the last point."""
    learning_rate: float
    """Learning rate of that step."""


class StepTime(Record):
    """Where the time of an optimizer step goes: medians over steps, the first ones left out."""

    forward_seconds: Measure
    """Forward passes of the step."""
    backward_seconds: Measure
    """Backward passes of the step."""
    optimizer_seconds: Measure
    """Clipping and update."""
    total_seconds: Measure
    """From the start of one step to the start of the next, data loading included."""


class TrunkRecord(Record):
    """What was kept of the frozen blocks below the lowest trained one."""

    blocks: Count
    """How many blocks were not run in training."""
    sequences: Count
    """Sequences whose states were read."""
    computed: Count
    """Those of them whose states this run had to compute first."""
    stored_bytes: Count
    """Bytes on the disk."""
    seconds: Measure
    """Time of that first pass; not part of the training time."""


class ProtectRecord(Record):
    """What was protected for the sake of an old text."""

    layers: Count
    """Linear layers whose updates left its directions alone."""
    tokens: Count
    """Tokens of it that were read."""
    directions: Measure
    """Mean share of a layer's input directions that were protected, 0 to 1."""
    seconds: Measure
    """Time to find them; not part of the training time."""
    flops: float = 0.0
    """Model FLOPs of reading, once in each phase; not part of ``flops_per_token``. 0 in records of
    earlier versions."""


class PhaseRecord(Record):
    """A stretch of the run in which one part of the model trained."""

    what: str
    """What trained, in words."""
    first_step: Positive
    """Its first step, counted from 1."""
    steps: Count
    """Steps taken in it."""
    tokens: Count
    """Tokens seen in it, over all processes."""
    learning_rate: float
    """Its peak learning rate."""
    trainable_parameters: Count
    """Parameters that trained."""
    flops_per_token: Measure
    """Model FLOPs of one of its tokens."""


class SourceRecord(Record):
    """What was seen of one source of the training data."""

    name: str
    """Names of files and folders, or the hub data set's id."""
    share: Measure
    """Share of the sequences that was asked for; 1 if there is no mixture."""
    items: Count
    """Different sequences, or rows, that it holds."""
    sequences: Count
    """Sequences seen, each as often as it was."""
    tokens: Count
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
    processes: Positive
    """Number of training processes."""
    device: str
    """Type of device."""
    precision: Literal["float32", "bfloat16"]
    """Arithmetic of the forward and backward pass."""
    parameters: Positive
    """All parameters; tied ones count once."""
    trainable_parameters: Count
    """Parameters that were trained."""
    trainable_blocks: list[Annotated[int, Field(ge=0, lt=10**5)]]
    """Blocks that were trained."""
    steps: Count
    """Optimizer steps."""
    tokens: Count
    """Tokens seen, over all processes."""
    sequence_length: Positive
    """Tokens in a sequence."""
    sources: list[SourceRecord] = Field(default_factory=list)
    """What was seen of which data, the main source first."""
    curve: list[LossPoint] = Field(min_length=1)
    """Loss over the run."""
    wall_seconds: Measure
    """Training time, earlier runs of a resumed one counted in."""
    tokens_per_second: Measure
    """Throughput of training alone, over all processes."""
    step_time: StepTime
    """Where a step's time goes."""
    peak_bytes: Count
    """Peak memory: of the GPU where there is one, else resident memory of the process."""
    flops_per_token: Measure
    """Model FLOPs of one trained token by our own formula, freezing taken into account; the mean
    over all tokens of a run in phases."""
    matmul_flops_per_second: Measure
    """Rate of a large matrix product measured on this machine at the start of the run."""
    utilisation: Measure
    """Model FLOPs per second as a share of that rate, blocks that were not run left out; of the
    last phase."""
    resumed_from_step: Count | None
    """The step that the last restart began at."""
    averaged_steps: list[Count] = Field(default_factory=list)
    """Steps whose weights the result is the mean of; none if it is the last step's alone."""
    phases: list[PhaseRecord] = Field(default_factory=list)
    """What trained for how long, if the recipe has phases; those that were begun."""
    trunk: TrunkRecord | None = None
    """What was kept of the frozen trunk; ``None`` if every block was run in every step. Of a run in
    phases in the last one that had a trunk."""
    protect: ProtectRecord | None = None
    """What was protected in the last phase; ``None`` if nothing was."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    versions: dict[str, str]
    """Software."""
