"""Say what growing would do, and what training the result would cost, before either is done."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from deepen import methods
from deepen.base.checkpoint import FolderSource
from deepen.base.memory import Described
from deepen.base.model import Model, as_model, open_model
from deepen.base.streamed import check_complete
from deepen.common import device as devices
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.common.settings import validate
from deepen.common.system import versions
from deepen.growth.config import grown_config
from deepen.growth.fuse import Growth, check_copies
from deepen.growth.side_files import left_behind
from deepen.methods.method import parse_options
from deepen.planning import placement
from deepen.planning.cost import estimate, placements, then_everything
from deepen.planning.parents import with_parents
from deepen.planning.pattern import BROKEN_PATTERN, follows_rule, rule_of
from deepen.planning.placement import PlacementRequest
from deepen.planning.plan import Plan
from deepen.planning.stages import uneven_stages
from deepen.records.cost import Estimate, Precision, Trained
from deepen.records.growth import (
    FIELD,
    BaseIdentity,
    GrowRecord,
    GrowRequest,
    Lineage,
    PlanRecord,
    Scores,
    Step,
    read_entry,
)

_LONGEST_DEFAULT = 2048
MEASURED_ON_TEXT = ("importance", "influence", "gradient")
"""What placements measure by running the base."""
UNTRAINABLE = (
    "The weights are quantised, and deepen does not train such: to train new blocks, grow the "
    "unquantised checkpoint."
)


def plan(
    model: str | Path,
    request: GrowRequest | None = None,
    *,
    revision: str | None = None,
    sequence_length: int | None = None,
    sequences: int = 1,
    precision: Precision = "bfloat16",
    activation_checkpointing: bool = False,
    everything_for: float = 0.0,
    progress: Progress = silent,
    **how: Any,
) -> PlanRecord:
    """Say what ``grow`` would do and what training would cost; nothing is written.

    Args:
        model: Checkpoint folder or hub id.
        request: How to grow.
        revision: Branch, tag or commit on the hub.
        sequence_length: Tokens in a training sequence; by default 2048, or as many as the model
            has positions.
        sequences: Sequences in one forward pass of one process.
        precision: Arithmetic of training.
        activation_checkpointing: Whether blocks compute their activations anew.
        everything_for: Share of the steps, at the end, in which everything trains and not the new
            blocks alone (``training.phases`` of a recipe).
        progress: Called with the stage and the finished share of it.
        **how: Fields of ``GrowRequest``, instead of ``request`` or over it.

    Raises:
        DeepenError: The model or the request is not one that can be grown.
    """
    base = open_model(model, revision, quantised=True)
    growth = resolve(base, requested(request, how), progress)
    conditions: Any = {
        "sequence_length": sequence_length
        or min(_LONGEST_DEFAULT, base.positions or _LONGEST_DEFAULT),
        "sequences": sequences,
        "precision": precision,
        "activation_checkpointing": activation_checkpointing,
    }
    lineage = lineage_of(growth)
    check_loads(growth, config_of(growth, lineage))
    record = grow_record(growth, lineage)
    assert isinstance(base.source, FolderSource)
    told = [*base.source.remarks, *left_behind(base.source)]
    notes = [*record.notes, *told, *uneven_stages(base.depth, growth.plan.depth)]
    return PlanRecord(
        growth=record.model_copy(update={"notes": notes}),
        cost=_cost(base, growth, everything_for, conditions),
        alternatives=placements(base, len(growth.plan.new_blocks), **conditions),
    )


def _cost(base: Model, growth: Growth, everything_for: float, conditions: Any) -> Estimate:  # noqa: ANN401
    """Estimate what training costs, with a last phase in which everything trains."""
    trains: Trained = "everything" if growth.trains == "everything" else "new_blocks"
    label = "this plan" + (", if its copies trained" if growth.trains == "nothing" else "")
    cost = estimate(base, growth.plan, trains=trains, label=label, **conditions)
    if not everything_for:
        return cost
    whole = estimate(base, growth.plan, trains="everything", **conditions)
    return then_everything(cost, whole, everything_for)


def requested(request: GrowRequest | None, how: Mapping[str, Any]) -> GrowRequest:
    """Check keyword arguments and put them over a request.

    Raises:
        DeepenError: There is no such field, or a value does not fit.
    """
    given = {} if request is None else request.model_dump(exclude_unset=True)
    chosen = {key: value for key, value in how.items() if key != "options" or value is not None}
    return validate(GrowRequest, {**given, **chosen}, "the request")


def resolve(base: Model, request: GrowRequest, progress: Progress = silent) -> Growth:
    """Turn a request into everything that determines the grown model.

    Raises:
        DeepenError: The method, an option, the placement or the device is unknown or does not fit.
    """
    method = methods.get(request.method)
    options = parse_options(method, request.options)
    check_copies(base, method, options)
    device = devices.choose(request.device)
    given = placement.parse(request.placement) if request.placement else None
    by = given.measured if given else None
    if request.calibration is not None and by not in MEASURED_ON_TEXT:
        raise DeepenError(
            f"Only placements by {', '.join(MEASURED_ON_TEXT)} read a calibration text; name "
            f"one of them, or leave --calibration out."
        )
    if by == "gradient" and request.calibration is None:
        raise DeepenError(
            "Placement 'gradient' measures what a text would teach new blocks; name the text that "
            "they are to learn by --calibration."
        )
    if request.new_layers == "auto" and by is None:
        raise DeepenError(
            f"--new-layers auto counts the gaps that stand out by a score; name a placement by "
            f"measurement ({', '.join(placement.SCORED)}), or a number."
        )
    measured = cache(partial(_scores, base, by or "", request.calibration, device, progress))
    where = PlacementRequest(
        depth=base.depth,
        new_layers=None if request.new_layers == "auto" else request.new_layers,
        auto=request.new_layers == "auto",
        placement=given,
        per_gap=request.per_gap,
        scores=lambda: measured().values,
        options=options,
        rule=rule_of(base.config, base.resolved, base.family),
    )
    along = given is not None and given.name == placement.PERIODS
    rule = where.rule if along else None
    new = with_parents(method.place(where), base.anatomy, base.resolved, rule)
    scores = measured() if by else None
    return Growth(base, request, new, method, options, device, progress, scores)


def _scores(
    base: Model,
    by: str,
    calibration: str | None,
    device: Any,  # noqa: ANN401 (a torch device)
    progress: Progress,
) -> Scores:
    """Score the base's blocks, or the gaps between them, as a placement asks."""
    _ = base.in_memory  # refuses what transformers would, before anything is measured
    if by in MEASURED_ON_TEXT:
        from deepen.planning.scoring.score import score

        return score(base, by, calibration, device, progress)
    from deepen.alignment.measure import gap_scores

    values = [round(score, 6) for score in gap_scores(base, device, progress)]
    return Scores(by=by, of="gaps", values=values)


def _check_plans(steps: Sequence[Step], depth: int) -> None:
    """Hold the growths of a base to each other and to its depth: nothing else reads all of them.

    Raises:
        DeepenError: A plan is none, or makes another number of blocks than there are.
    """
    plans = [Plan.from_json(step.plan) for step in steps]
    made, there = [p.depth for p in plans], [*(p.base_depth for p in plans[1:]), depth]
    if plans and made != there:
        raise DeepenError(
            f"The deepen entry of config.json contradicts itself (its growths make {made} blocks, "
            f"where {there} are): it was edited; restore config.json, or grow the checkpoint again "
            f"from its base."
        )


def lineage_of(growth: Growth, sha256: str | None = None) -> Lineage:
    """Return the ``deepen`` entry of the grown model.

    Args:
        growth: How it is made.
        sha256: That of the base, once all of it has been read.

    Raises:
        DeepenError: The base's own entry describes another model.
    """
    base, before = growth.base, read_entry(growth.base.source.config)
    _check_plans(before.steps if before else [], base.depth)
    step = Step(
        method=growth.method.name,
        reference=growth.method.reference,
        options=growth.options.model_dump(mode="json"),
        placement=growth.request.placement,
        scores=growth.scores,
        seed=growth.request.seed,
        device=growth.device.type,
        base=BaseIdentity(
            name=base.source.name,
            revision=base.source.revision,
            fingerprint=base.source.fingerprint,
            sha256=sha256,
        ),
        plan=growth.plan.to_json(),
        new_blocks=growth.plan.new_blocks,
        trains=growth.trains,
        preserves_function=growth.options.preserves_function,
        versions=versions(),
    )
    return Lineage(
        new_blocks=step.new_blocks,
        steps=[*(before.steps if before else []), step],
        trainings=before.trainings if before else [],
    )


def config_of(growth: Growth, lineage: Lineage) -> dict[str, Any]:
    """Return config.json of the grown model, lineage included."""
    base = growth.base
    config = grown_config(base.config, base.resolved, base.family, growth.plan)
    return base.whole_config(config) | {FIELD: lineage.model_dump(mode="json")}


def check_loads(growth: Growth, config: Mapping[str, Any]) -> None:
    """Build the grown model without weights, and hold every tensor to what is planned.

    Args:
        growth: What is planned.
        config: config.json of the grown model.

    Raises:
        DeepenError: transformers would not load it, would leave a tensor out, or would make one up.
    """
    check_complete(as_model(Described(growth.base.source.name, config, growth.layout)))


def grow_record(growth: Growth, lineage: Lineage) -> GrowRecord:
    """Count what the growth makes."""
    base, infos, step = growth.base, growth.layout.values(), lineage.steps[-1]
    fields = type(growth.options).model_fields
    chosen = {name: step.options[name] for name in growth.request.options if name in step.options}
    parameters = Described("grown", base.source.config, growth.layout).parameters
    config = grown_config(base.config, base.resolved, base.family, growth.plan)
    kept = follows_rule(base.config, base.resolved, base.family, config)
    new = sum(base.parameters_of(block.nearest) for block in growth.plan.inserts)
    return GrowRecord(
        out=None,
        step=step,
        base_depth=base.depth,
        depth=growth.plan.depth,
        base_parameters=base.source.parameters,
        chosen_options={k: v for k, v in chosen.items() if v != fields[k].default},
        parameters=parameters,
        new_parameters=new,
        trainable_parameters={"everything": parameters, "new_blocks": new, "nothing": 0}[
            growth.trains
        ],
        weight_bytes=sum(info.nbytes for info in infos),
        keeps_pattern=kept,
        notes=[
            *([BROKEN_PATTERN] if kept is False else []),
            *([UNTRAINABLE] if base.source.quantisation else []),
        ],
    )
