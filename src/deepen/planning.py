"""Say what growing would do, and what training the result would cost, before either is done."""

from pathlib import Path
from typing import Unpack

from deepen.base import open_base
from deepen.growth import How, preview
from deepen.plans import Plan
from deepen.records import GrowRecord, Record
from deepen.training.estimate import Estimate, Precision, estimate, placements

_LONGEST_DEFAULT = 2048


class PlanRecord(Record):
    """What ``plan`` found."""

    growth: GrowRecord
    """What ``grow`` would do."""
    cost: Estimate
    """What a training step of the result would cost, training what the method trains."""
    alternatives: list[Estimate]
    """The same number of new blocks, placed or trained otherwise."""


def plan(
    model: str | Path,
    *,
    revision: str | None = None,
    sequence_length: int | None = None,
    sequences: int = 1,
    precision: Precision = "bfloat16",
    activation_checkpointing: bool = False,
    **how: Unpack[How],
) -> PlanRecord:
    """Say what ``grow`` would do and what training would cost; nothing is written.

    Args:
        model: Checkpoint folder or hub id.
        revision: Branch, tag or commit on the hub.
        sequence_length: Tokens in a training sequence; by default 2048, or as many as the model
            has positions.
        sequences: Sequences in one forward pass of one process.
        precision: Arithmetic of training.
        activation_checkpointing: Whether blocks compute their activations anew.
        **how: See ``How``.

    Raises:
        DeepenError: The model or the request is not one that can be grown.
    """
    growth = preview(model, revision=revision, **how)
    base = open_base(model, revision)
    length = sequence_length or min(_LONGEST_DEFAULT, base.positions or _LONGEST_DEFAULT)
    steps = Plan.from_json(growth.step.plan)
    return PlanRecord(
        growth=growth,
        cost=estimate(
            base,
            steps,
            trains=growth.step.trains,
            label="this plan",
            sequence_length=length,
            sequences=sequences,
            precision=precision,
            activation_checkpointing=activation_checkpointing,
        ),
        alternatives=placements(
            base,
            len(steps.new_blocks),
            sequence_length=length,
            sequences=sequences,
            precision=precision,
            activation_checkpointing=activation_checkpointing,
        ),
    )
