"""Schemas of everything that is written: lineage in config.json, and what each stage returns."""

import resource
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from deepen.errors import DeepenError
from deepen.plans import Insert, Plan

FIELD = "deepen"
"""The key of the lineage in config.json."""


class Record(BaseModel):
    """Base of all records: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class BaseIdentity(Record):
    """Which model was grown."""

    name: str
    """Hub id, or the folder's name."""
    revision: str | None
    """Hub commit."""
    fingerprint: str
    """SHA-256 as ``Source.fingerprint`` defines it."""


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
    trains: Literal["new_blocks", "everything"]
    """What the method's paper trains after growing."""
    preserves_function: bool
    """Whether the method promises the base's logits."""
    versions: dict[str, str]
    """Versions of the software that computed it."""


class Lineage(Record):
    """The ``deepen`` entry of a grown checkpoint's config.json."""

    format: Literal[1] = 1
    """Version of this schema."""
    new_blocks: list[int]
    """Blocks that the latest step added: what trains, unless its method trains everything."""
    steps: list[Step]
    """All growths from the first base to this model."""

    def origins(self) -> list["Origin"]:
        """Trace every block of the model back to the first base or to the step that made it."""
        stack: list[Origin] = []
        for number, step in enumerate(self.steps, start=1):
            plan = Plan.from_json(step.plan)
            if not stack:
                stack = [Origin(step=0, block=i) for i in range(plan.base_depth)]
            stack = [
                Origin(step=number, method=step.method, parents=list(block.parents), t=block.t)
                if isinstance(block, Insert)
                else stack[block.source]
                for block in plan.blocks
            ]
        return stack


class Origin(Record):
    """Where one block of a grown model comes from."""

    step: int
    """The growth that made it, counted from 1; 0 for a block of the first base."""
    block: int | None = None
    """Its index in the first base."""
    method: str | None = None
    """The method that made it."""
    parents: list[int] = []
    """The blocks that it was made from, as indices of the model that the step grew."""
    t: float | None = None
    """Where between its parents it lies."""


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
    parameters: int
    """Stored parameters after."""
    new_parameters: int
    """Parameters of the new blocks."""
    trainable_parameters: int
    """Parameters that the method's paper trains."""
    weight_bytes: int
    """Size of the grown weights on disk."""
    notes: list[str] = []
    """What the user should know: ``.bin`` weights, transport that did not converge."""
    wall_seconds: float | None = None
    """Time taken."""
    peak_bytes: int | None = None
    """Peak resident memory of the process, the libraries' own included."""


def read_lineage(config: Mapping[str, Any]) -> Lineage | None:
    """Return a checkpoint's lineage; ``None`` if deepen did not grow it.

    Raises:
        DeepenError: There is an entry, but not one that this version understands.
    """
    if FIELD not in config:
        return None
    try:
        return Lineage.model_validate(config[FIELD])
    except ValidationError as error:
        first = error.errors()[0]
        raise DeepenError(
            f"The deepen entry of config.json is not one that this version understands "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); update deepen."
        ) from None


def versions() -> dict[str, str]:
    """Return the versions of the software that decides what the bytes are."""
    packages = ("deepen", "torch", "transformers", "safetensors", "POT", "numpy")
    return {package: version(package) for package in packages}


def peak_resident_bytes() -> int:
    """Return the process's peak resident memory so far.

    ``ru_maxrss`` will not do on Linux: a process inherits it from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
