"""Show what a checkpoint is: its blocks, where each comes from, what is new."""

from pathlib import Path

from deepen.base.model import Model, open_model
from deepen.common.progress import Progress, silent
from deepen.planning.plan import Insert, Plan
from deepen.records.alignment import AlignmentRecord
from deepen.records.growth import Lineage, read_lineage
from deepen.records.verification import InspectRecord, Origin, PeftTargets


def inspect(
    model: str | Path,
    *,
    revision: str | None = None,
    alignment: bool = False,
    calibration: Path | None = None,
    peft: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> InspectRecord:
    """Read a checkpoint's headers and lineage, grown or not, and measure its blocks if asked.

    Args:
        model: Checkpoint folder or hub id.
        revision: Branch, tag or commit on the hub.
        alignment: Whether to measure how well neighbouring blocks align; see ``align``.
        calibration: Text to compare what blocks compute on; implies ``alignment``.
        peft: Whether to say how peft puts adapters on the new blocks alone.
        device: Where to measure.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The checkpoint cannot be read, is of a family that deepen does not know, or,
            with ``peft``, was not grown.
    """
    opened = open_model(model, revision, quantised=True)
    lineage = read_lineage(opened.source.config)
    new_blocks = lineage.new_blocks if lineage else []
    per_block = [opened.parameters_of(index) for index in range(opened.depth)]
    return InspectRecord(
        name=opened.source.name,
        family=opened.family.model_type,
        dtypes=sorted({info.dtype for info in opened.source.infos.values()}),
        blocks=opened.depth,
        parameters=opened.source.parameters,
        parameters_per_block=per_block,
        new_blocks=new_blocks,
        new_parameters=sum(per_block[index] for index in new_blocks),
        steps=lineage.steps if lineage else [],
        origins=origins(lineage)
        if lineage
        else [Origin(step=0, block=index) for index in range(opened.depth)],
        alignment=_aligned(opened, calibration, device, progress)
        if alignment or calibration
        else None,
        peft=_targets(opened) if peft else None,
    )


def _aligned(
    model: Model, calibration: Path | None, device: str, progress: Progress
) -> AlignmentRecord:
    """Measure how well neighbouring blocks align; torch is imported for this alone."""
    from deepen.alignment.measure import align_model
    from deepen.common import device as devices

    return align_model(model, calibration, devices.choose(device), progress)


def _targets(model: Model) -> PeftTargets:
    """Say how peft puts adapters on the new blocks, for which transformers' model is built."""
    from deepen.verification.adapters import new_block_targets

    return new_block_targets(model)


def origins(lineage: Lineage) -> list[Origin]:
    """Trace every block of a model back to the first base or to the step that made it."""
    stack: list[Origin] = []
    for number, step in enumerate(lineage.steps, start=1):
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
