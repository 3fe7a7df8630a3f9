"""What was written, and what ``verify`` and ``inspect`` found."""

from typing import Literal

from pydantic import ConfigDict, Field, computed_field

from deepen.records.alignment import AlignmentRecord
from deepen.records.growth import Step
from deepen.records.record import Record


class FileDigest(Record):
    """One file, as it was written or read."""

    sha256: str
    """SHA-256 of its bytes."""
    size_bytes: int
    """Size."""


class Manifest(Record):
    """What was written: ``deepen-manifest.json`` beside it."""

    format: Literal[1] = 1
    """Version of this schema."""
    made_from: dict[str, FileDigest]
    """Weight files of what was grown or trained, as they were then."""
    files: dict[str, FileDigest]
    """Every other file of the checkpoint, by its path inside the folder."""
    new_tensors: dict[str, str]
    """Tensor that was made or trained → SHA-256 of its bytes."""


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
    trained: bool = False
    """Whether the grown model was trained, by its lineage or because the caller says so."""
    checks: list[Check]
    """In the order in which they were made; the ones that need a sound structure come last."""
    manifest: str | None = None
    """SHA-256 of the grown model's manifest; ``None`` if it has none."""
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


class Origin(Record):
    """Where one block of a grown model comes from."""

    step: int
    """The growth that made it, counted from 1; 0 for a block of the first base."""
    block: int | None = None
    """Its index in the first base."""
    method: str | None = None
    """The method that made it."""
    parents: list[int] = Field(default_factory=list)
    """The blocks that it was made from, as indices of the model that the step grew."""
    t: float | None = None
    """Where between its parents it lies."""


class PeftTargets(Record):
    """What peft's ``LoraConfig`` is given so that some blocks get adapters and nothing else."""

    target_modules: list[str]
    """Linear layers, by the path that they have in a block."""
    target_parameters: list[str]
    """Parameters, by their whole path: experts that lie in one tensor, and layers beside them."""
    layers_to_transform: list[int]
    """The blocks."""
    layers_pattern: str
    """What the list of blocks is called, of a larger model with the name of its text model."""
    fan_in_fan_out: bool
    """Whether weights are [in, out], as GPT-2's."""


class InspectRecord(Record):
    """What ``inspect`` found."""

    name: str
    """Hub id, or the folder's name."""
    family: str
    """The config's ``model_type``."""
    dtypes: list[str]
    """Stored dtypes."""
    blocks: int
    """Number of blocks."""
    parameters: int
    """Stored parameters; tied ones count once."""
    parameters_per_block: list[int]
    """Parameters of each block."""
    new_blocks: list[int]
    """Blocks that the latest growth added."""
    new_parameters: int
    """Parameters of those."""
    steps: list[Step]
    """All growths, the earliest first."""
    origins: list[Origin]
    """For each block, where it comes from."""
    alignment: AlignmentRecord | None = None
    """How well neighbouring blocks align, if asked for."""
    peft: PeftTargets | None = None
    """How peft puts adapters on the new blocks alone, if asked for."""
