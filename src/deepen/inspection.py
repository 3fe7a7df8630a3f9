"""Show what a checkpoint is: its blocks, where each comes from, what is new."""

from pathlib import Path

from deepen.alignment import align
from deepen.base import open_base
from deepen.methods.base import Progress, silent
from deepen.records import Origin, Record, Step, read_lineage
from deepen.results import AlignmentRecord


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


def inspect(
    model: str | Path,
    *,
    revision: str | None = None,
    alignment: bool = False,
    calibration: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> InspectRecord:
    """Read a checkpoint's headers and lineage, grown or not, and measure its blocks if asked.

    Args:
        model: Checkpoint folder or hub id.
        revision: Branch, tag or commit on the hub.
        alignment: Whether to measure how well neighbouring blocks align; see ``align``.
        calibration: Text to compare what blocks compute on; implies ``alignment``.
        device: Where to measure.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The checkpoint cannot be read, or is of a family that deepen does not know.
    """
    base = open_base(model, revision)
    lineage = read_lineage(base.source.config)
    new_blocks = lineage.new_blocks if lineage else []
    per_block = [base.parameters_of(index) for index in range(base.depth)]
    return InspectRecord(
        name=base.source.name,
        family=base.family.model_type,
        dtypes=sorted({info.dtype for info in base.source.infos.values()}),
        blocks=base.depth,
        parameters=base.source.parameters,
        parameters_per_block=per_block,
        new_blocks=new_blocks,
        new_parameters=sum(per_block[index] for index in new_blocks),
        steps=lineage.steps if lineage else [],
        origins=lineage.origins()
        if lineage
        else [Origin(step=0, block=index) for index in range(base.depth)],
        alignment=align(
            model, revision=revision, calibration=calibration, device=device, progress=progress
        )
        if alignment or calibration
        else None,
    )
