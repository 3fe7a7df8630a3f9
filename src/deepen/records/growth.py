"""A growth, as the grown checkpoint's config.json and ``grow`` tell it."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from deepen.common.errors import DeepenError
from deepen.records.cost import Estimate
from deepen.records.record import Record

FIELD = "deepen"
"""The key of the lineage in config.json."""
Trains = Literal["new_blocks", "everything", "nothing"]
"""What a growth asks to be trained."""


class BaseIdentity(Record):
    """Which model was grown."""

    name: str
    """Hub id, or the folder's name."""
    revision: str | None
    """Hub commit."""
    fingerprint: str
    """SHA-256 as ``Source.fingerprint`` defines it: of the ends of every tensor."""
    sha256: str | None = None
    """SHA-256 of all bytes, as ``base.identity`` defines it; older records have none."""


class GrowChoice(Record):
    """What can be chosen of a growth apart from its seed: what arms of a study differ in."""

    method: str = "opt-deus"
    """Growth method; `deepen methods` lists them."""
    new_layers: int | Literal["auto"] | None = None
    """Number of new blocks; by default what the method's paper does, half of the base's; auto is
    as many as stand out by the scores of a placement by measurement."""
    placement: str | None = None
    """top, middle, bottom, top-bottom, uniform, spread:4-12, periods, quality, importance,
    influence, gradient (see docs/placement.md), or after:3,4,5; by default the method's own."""
    calibration: str | None = None
    """Text that placements importance, influence and gradient are measured on, a file or
    registry:TEXT/PART; by default the passage that verify reads, but for gradient."""
    per_gap: int = 1
    """How many new blocks a gap may take."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The method's own options by name."""


class GrowRequest(GrowChoice):
    """How to grow: what ``plan``, ``grow`` and ``grow_model`` are asked for."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random."""
    device: str = "auto"
    """Where new blocks are computed: auto, cpu, cuda, cuda:1, …"""


class Scores(Record):
    """What a placement was chosen by."""

    by: str
    """What was measured: ``importance``, ``influence``, ``gradient``, or ``quality`` of
    alignment."""
    of: Literal["blocks", "gaps"]
    """What has a score: every block, or every gap between two."""
    values: list[float]
    """The scores from bottom to top, rounded to six decimals: what the placement sorted."""
    text: str | None = None
    """Name of the calibration text; ``None`` if no text was read."""
    text_sha256: str | None = None
    """SHA-256 of all of it."""
    tokens: int = 0
    """How many tokens of it were read."""


class AlignmentProof(Record):
    """What was found when an aligned lower block was run beside the block that it was made from."""

    below: int
    """The lower block, as an index of the base."""
    above: int
    """The upper block that it was aligned to."""
    relative_change: float
    """‖what the aligned block adds - what the block adds‖ / ‖what the block adds‖, in float32."""
    aligned: bool
    """Whether the alignment was used; above the limit nothing is aligned there."""


class Step(Record):
    """One growth, as the grown checkpoint tells it."""

    method: str
    """Name of the method."""
    reference: str
    """Its paper."""
    options: dict[str, Any]
    """All options of the method, defaults included."""
    placement: str | None
    """Placement asked for; ``None`` is the method's own."""
    scores: Scores | None = Field(default=None, exclude_if=lambda value: value is None)
    """What it was chosen by, if it was measured; not written where it was not."""
    seed: int
    """Seed of everything random."""
    device: str
    """Type of device that computed the new blocks; last bits differ between devices."""
    base: BaseIdentity
    """What was grown."""
    plan: list[int | list[int | float]]
    """The new stack: a kept block's index, or [below, above, t]."""
    new_blocks: list[int]
    """Indices of the new blocks in the model that this step made."""
    trains: Trains
    """What the method's paper, or its options, would train after growing."""
    preserves_function: bool
    """Whether the method promises the base's logits."""
    versions: dict[str, str]
    """Versions of the software that computed it."""

    @property
    def base_depth(self) -> int:
        """Number of blocks of what was grown."""
        return sum(isinstance(block, int) for block in self.plan)

    @model_validator(mode="after")
    def _check_new_blocks(self) -> Self:
        """Hold the new blocks to the plan: what trains must be what the plan says was added."""
        planned = [i for i, block in enumerate(self.plan) if not isinstance(block, int)]
        if self.new_blocks != planned:
            raise ValueError(f"new_blocks are {self.new_blocks}, and the plan adds {planned}")
        return self


class Training(Record):
    """One training: what it may have changed, and nothing else has changed."""

    stage: Literal["cpt", "sft", "elsewhere"]
    """Continual pre-training, supervised fine-tuning, or not by deepen."""
    base: BaseIdentity | None = None
    """Which checkpoint was trained."""
    after_steps: int
    """How many growths came before it; blocks are counted in the model that they made."""
    everything: bool = False
    """Whether nothing was frozen."""
    blocks: list[int]
    """Blocks in which something was trained."""
    outside: list[str] = Field(default_factory=list)
    """What was trained outside all blocks: ``embeddings``, the last ``norm``, the ``head``."""
    lora: int | None = None
    """Rank of the adapters that were merged into the blocks' linear layers, if they were all."""
    neurons: int | None = None
    """How many neurons at the end of every FFN were trained, if they were all."""
    stored_dtype: str | None = None
    """What all weights were stored as (``F32``); ``None`` if each kept its own dtype."""
    new_blocks_before: dict[int, str] = Field(default_factory=dict)
    """New block that was trained → SHA-256 of its tensors before that."""
    steps: int = 0
    """Optimizer steps."""
    tokens: int = 0
    """Tokens seen."""


class Lineage(Record):
    """The ``deepen`` entry of a checkpoint's config.json: of one that was grown, or trained."""

    format: Literal[1] = 1
    """Version of this schema."""
    new_blocks: list[int]
    """Blocks that the latest step added: what trains, unless its method trains everything."""
    steps: list[Step]
    """All growths from the first base to this model."""
    trainings: list[Training] = Field(default_factory=list, exclude_if=lambda value: not value)
    """All trainings of what they made, the earliest first; not written where there is none."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        """Hold growths to each other, and trainings to them."""
        latest = self.steps[-1].new_blocks if self.steps else []
        if self.new_blocks != latest:
            raise ValueError(f"new_blocks are {self.new_blocks}, and the last step's {latest}")
        for number, (before, after) in enumerate(pairwise(self.steps), start=2):
            if after.base_depth != len(before.plan):
                raise ValueError(
                    f"step {number} grew {after.base_depth} blocks, and the step before it made "
                    f"{len(before.plan)}"
                )
        for number, training in enumerate(self.trainings, start=1):
            made = self.steps[: training.after_steps]
            if len(made) != training.after_steps:
                raise ValueError(f"training {number} came after {training.after_steps} growths")
            blocks = [*training.blocks, *training.new_blocks_before]
            if made and not {*blocks} <= {*range(len(made[-1].plan))}:
                raise ValueError(f"training {number} names blocks that there were not")
        return self


class GrowRecord(Record):
    """What ``grow`` did, or with ``plan`` would do."""

    out: str | None
    """Folder of the grown checkpoint; ``None`` if nothing was written."""
    step: Step
    """The growth, as it stands in the checkpoint's config.json."""
    base_depth: int
    """Blocks before."""
    depth: int
    """Blocks after."""
    base_parameters: int
    """Stored parameters before; tied ones count once."""
    chosen_options: dict[str, Any] = Field(default_factory=dict)
    """The method's options that are not at their defaults."""
    parameters: int
    """Stored parameters after."""
    new_parameters: int
    """Parameters of the new blocks."""
    trainable_parameters: int
    """Parameters that the method's paper trains."""
    weight_bytes: int
    """Size of the grown weights on disk."""
    keeps_pattern: bool | None = None
    """Whether block types follow the rule that made the base's; ``None`` if there is no rule, or
    all blocks are of one type."""
    proofs: list[AlignmentProof] = Field(default_factory=list)
    """For each pair of blocks that was aligned, that the aligned one computes what it did."""
    notes: list[str] = Field(default_factory=list)
    """What the user should know: ``.bin`` weights, transport that did not converge."""
    manifest: str | None = None
    """SHA-256 of ``deepen-manifest.json``, which has that of every other file."""
    wall_seconds: float | None = None
    """Time taken."""
    peak_bytes: int | None = None
    """Peak resident memory of the process, the libraries' own included."""


class WidenRecord(Record):
    """What ``widen`` did."""

    out: str
    """Folder of the wider checkpoint."""
    base: BaseIdentity
    """What was widened."""
    seed: int
    """Seed of the new neurons' inputs."""
    neurons: int
    """How many neurons each FFN was given; they are its last ones."""
    width: int
    """Neurons of each FFN after that."""
    config_fields: list[str]
    """The keys of config.json that hold this width."""
    base_parameters: int
    """Stored parameters before; tied ones count once."""
    parameters: int
    """Stored parameters after."""
    new_parameters: int
    """Those of the new neurons: what trains with ``training.neurons``."""


class PlanRecord(Record):
    """What ``plan`` found."""

    growth: GrowRecord
    """What ``grow`` would do."""
    cost: Estimate
    """What a training step of the result would cost, training what the method trains."""
    alternatives: list[Estimate]
    """The same number of new blocks, placed or trained otherwise."""


def read_lineage(config: Mapping[str, Any]) -> Lineage | None:
    """Return a grown checkpoint's lineage; ``None`` if deepen did not grow it.

    Raises:
        DeepenError: There is an entry, but not one that this version understands.
    """
    entry = read_entry(config)
    return entry if entry and entry.steps else None


def read_entry(config: Mapping[str, Any]) -> Lineage | None:
    """Return the lineage of a checkpoint that was grown or trained; ``None`` if there is none.

    Raises:
        DeepenError: There is an entry, but not one that this version understands, or one that
            contradicts itself.
    """
    if FIELD not in config:
        return None
    try:
        return Lineage.model_validate(config[FIELD])
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            reason = first["msg"].removeprefix("Value error, ")
            raise DeepenError(
                f"The deepen entry of config.json contradicts itself ({reason}): it was edited; "
                f"restore config.json, or grow the checkpoint again from its base."
            ) from None
        raise DeepenError(
            f"The deepen entry of config.json is not one that this version understands "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); update deepen."
        ) from None
