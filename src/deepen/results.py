"""Schemas of what verification, training, evaluation and studies write."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, computed_field

from deepen.records import GrowRecord, Record


class Check(Record):
    """One thing that was looked at."""

    name: str
    """What was looked at."""
    passed: bool
    """Whether it is as claimed."""
    detail: str
    """What was found, with counts."""


class VerifyRecord(Record):
    """What ``verify`` found."""

    # Its JSON holds ``passed``, which is computed, and must read back.
    model_config = ConfigDict(extra="ignore")

    base: str
    """Name of the base."""
    grown: str
    """Name of the grown model."""
    methods: list[str]
    """Methods of the growths that lead from the one to the other."""
    checks: list[Check]
    """In the order in which they were made; the ones that need a sound structure come last."""
    tokens: int = 0
    """Number of tokens that both models were run on."""
    max_abs_logit_difference: float | None = None
    """Largest difference of the two models' logits; ``None`` if they could not be run."""
    kl_nats_per_token: float | None = None
    """Mean over tokens of KL(base ‖ grown); ``None`` if they could not be run."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


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
    """Model FLOPs per second as a share of that rate."""
    resumed_from_step: int | None
    """The step that the last restart began at."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    versions: dict[str, str]
    """Software."""


class TextScore(Record):
    """A model's loss on a text file."""

    file: str
    """Name of the file."""
    sha256: str
    """Hash of its content."""
    tokens: int
    """Tokens that were predicted."""
    text_bytes: int
    """UTF-8 bytes that those tokens stand for."""
    loss_nats_per_token: float
    """Mean loss."""
    token_perplexity: float
    """Its exponential."""
    bits_per_byte: float
    """Loss in bits over all tokens, divided by the bytes: comparable between tokenizers."""


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
    samples: int
    """Number of examples."""
    shots: int
    """Number of examples in the prompt."""
    higher_is_better: bool
    """Direction of the metric."""
    task_hash: str
    """SHA-256 of the task's resolved configuration."""
    version: str
    """The task's own version."""


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
    sequence_length: int
    """Tokens that the model sees at once."""
    batch_size: int
    """Sequences in a forward pass."""
    wall_seconds: float
    """Time taken."""
    versions: dict[str, str]
    """Software."""


class PartAlignment(Record):
    """How well one kind of part of two blocks was matched one to one."""

    # Its JSON holds the costs, which are computed, and must read back.
    model_config = ConfigDict(extra="ignore")

    part: str
    """``heads``, ``neurons``, ``expert neurons`` (means over experts) or ``shared neurons``."""
    units: int
    """How many were matched."""
    similarity_before: float
    """Mean similarity of those of the same index, -1 to 1: what a plain mean averages."""
    similarity_after: float
    """Mean similarity of matched ones."""
    similarity_by_chance: float
    """The same for two unrelated blocks of these norms."""
    in_place: float
    """Share that was matched to the same index."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost_before(self) -> float:
        """Mean transport cost, 1 - similarity, of leaving everything where it is."""
        return 1 - self.similarity_before

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost_after(self) -> float:
        """Mean transport cost of the match."""
        return 1 - self.similarity_after


class BlockAlignment(Record):
    """How well two blocks align, and the new block between them, if there is one."""

    below: int
    """The lower block, as an index of the model."""
    above: int
    """The upper block."""
    block: int | None
    """The new block that was made from them; ``None`` for a gap."""
    parts: list[PartAlignment]
    """Part by part."""
    effective_matches: float | None
    """Neurons that one neuron is spread over by the entropic plan, exp of its mean row entropy;
    ``None`` without an FFN."""
    diagonal_mass: float | None
    """Share of that plan's mass that stays at its own index; ``None`` without an FFN."""
    cka: float | None
    """Linear CKA of what the two blocks add to the residual stream on the calibration text."""
    norm_ratios: dict[str, float]
    """Role → median row norm of the new block's weight as a share of the upper block's."""
    heat_map: list[list[float]]
    """The entropic plan of the neurons, sorted and shrunk, in units of the uniform plan's mass."""


class AlignmentRecord(Record):
    """How well a model's neighbouring blocks align."""

    model: str
    """Hub id, or the folder's name."""
    method: str | None
    """The method that made the new blocks; ``None`` if there are none."""
    calibration: str | None
    """Name of the calibration text."""
    regularisation: float
    """Entropic regularisation of the plans that are shown, in units of the cost's spread."""
    blocks: list[BlockAlignment]
    """One entry per new block, or per gap of a model that was not grown."""


class ArmRecord(Record):
    """One arm of a study with one seed: a line of records.jsonl."""

    arm: str
    """The arm's label, unique in the study; ``base`` is the un-grown base, trained alike."""
    method: str | None
    """Growth method; ``None`` for the base."""
    placement: str | None
    """Placement asked for."""
    seed: int
    """Seed of growth, data order and training."""
    grow: GrowRecord | None
    """How it was grown; ``None`` for the base."""
    verification: VerifyRecord | None = None
    """Proof that it is what it claims; ``None`` for the base."""
    alignment: AlignmentRecord | None = None
    """How well the parents of its new blocks align; ``None`` where none were fused."""
    before: EvalRecord
    """Scores before training."""
    train: TrainRecord
    """How it was trained."""
    after: EvalRecord
    """Scores after training."""
    fine_tuning: TrainRecord | None = None
    """How it was fine-tuned after that; ``None`` if the study does not."""
    after_fine_tuning: EvalRecord | None = None
    """Scores after fine-tuning."""


class PairedDifference(Record):
    """Difference of two arms in one score, paired over seeds."""

    arm: str
    """The arm."""
    other: str
    """The arm that is subtracted."""
    score: str
    """For example ``loss_nats_per_token on held_out.txt`` or ``acc of piqa``."""
    seeds: int
    """Number of pairs."""
    mean: float
    """Mean of arm - other."""
    low: float | None
    """Lower end of the 95 % interval by Student's t; ``None`` with fewer than two pairs."""
    high: float | None
    """Upper end."""


class StudySummary(Record):
    """What ``compare`` concludes from its records: summary.json."""

    study: dict[str, Any]
    """The resolved study."""
    arms: list[str]
    """Labels in the order of the study."""
    seeds: list[int]
    """Seeds of the study."""
    differences: list[PairedDifference]
    """Every arm against the base, and every arm against every later one, after training."""
    fine_tuned_differences: list[PairedDifference] = Field(default_factory=list)
    """The same after fine-tuning, where the study has it."""
    versions: dict[str, str]
    """Software."""
