"""What a study leaves open until its base is known: how large alternatives are, how long arms run.

Growing by k blocks is held to what else the same number of parameters could be: adapters on all
blocks, the base's own top blocks, or wider FFNs. Everything is settled before the first arm starts,
from the base's config and the shapes of its tensors, and stands in the study's resolved file.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from deepen.base.hub import open_checkpoint
from deepen.base.model import Model, open_model
from deepen.base.text import tokenizer_of
from deepen.common.errors import DeepenError
from deepen.common.settings import Settings, validate
from deepen.comparison.arm import BASE, LORA, TOP_BLOCKS, WIDER, Arm
from deepen.comparison.study import Study
from deepen.evaluation.evaluate import LONGEST_DEFAULT
from deepen.evaluation.perplexity import read
from deepen.growth.preview import config_of, grow_record, lineage_of, resolve
from deepen.planning.cost import reading_flops_per_token, training_flops_per_token
from deepen.planning.partial import (
    lora_flops_per_token,
    lora_rank,
    neuron_flops_per_token,
    neuron_parameters,
    wider_neurons,
)
from deepen.records.growth import GrowRecord
from deepen.training.phases.phase import borders, ends, parts
from deepen.training.recipe import TrainingConfig

_ROUNDING = 1e-9
"""Of a sum of costs, as a share of it."""
Count = Annotated[int, Field(ge=1, le=10**7)]


class LoraOptions(Settings):
    """Options of an arm ``lora``."""

    rank: Count | None = None
    """Rank of the adapters; by default the one that gives them the study's ``parameters``."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """As in a recipe; by default twice the rank."""
    blocks: Count | None = None
    """How many blocks have adapters, from the top; by default all."""


class TopBlocksOptions(Settings):
    """Options of an arm ``top-blocks``."""

    blocks: Count | None = None
    """How many of the base's top blocks train; by default those of the study's ``parameters``."""


class WiderOptions(Settings):
    """Options of an arm ``wider``."""

    neurons: Count | None = None
    """Neurons that every FFN gets; by default those of the study's ``parameters``."""


class BaseOptions(Settings):
    """An arm ``base`` has no options."""


OPTIONS: Mapping[str, type[Settings]] = {
    BASE: BaseOptions,
    LORA: LoraOptions,
    TOP_BLOCKS: TopBlocksOptions,
    WIDER: WiderOptions,
}
"""Method of an arm that is not grown → its options."""


def settle(study: Study) -> Study:
    """Give alternatives their size, and every arm its number of steps.

    Args:
        study: A study that was checked.

    Returns:
        The study with the settings of training filled in; labels stay what they were.

    Raises:
        DeepenError: The base cannot be opened or grown as an arm asks, no grown arm says how many
            parameters alternatives get, or a budget in FLOPs has no number of steps or tokens.
    """
    for arm in study.all_arms:
        if not arm.is_grown:
            _options(arm)
    sized = [arm for arm in study.all_arms if arm.method in (LORA, TOP_BLOCKS, WIDER)]
    if not sized and study.budget == "tokens":
        return study
    base = open_model(study.base)

    @cache
    def parameters() -> int:
        return study.parameters or _parameters(study, base)

    arms = []
    for arm in study.all_arms:
        own = {} if arm.is_grown or arm.method == BASE else _part(arm, base, parameters)
        arms.append(_with(arm, own | arm.training))
    study = study.model_copy(update={"arms": arms})
    return study if study.budget == "tokens" else _equal_flops(study, base)


def check_texts(study: Study) -> None:
    """Read the beginning of every text that arms are scored on, before anything is trained.

    Raises:
        DeepenError: A text is missing or damaged, or is a chat that the base has no template for;
            or arms would be scored on nothing.
    """
    files = [file for file, _ in study.evaluation.texts]
    if not files and not study.evaluation.sides_of_tasks:
        raise DeepenError(
            "The study scores its arms on nothing; name a text or a task under evaluation."
        )
    if files:
        tokenizer = tokenizer_of(open_checkpoint(study.base))
        length = study.evaluation.sequence_length or LONGEST_DEFAULT
        for file in files:
            read(Path(file), tokenizer, 1, longest_chat=length)


def _with(arm: Arm, training: dict[str, Any]) -> Arm:
    """Return an arm with other settings and the same label."""
    return arm.model_copy(update={"training": training, "label": arm.name})


def _options(arm: Arm) -> Any:  # noqa: ANN401 (one of several classes)
    """Check the options of an arm that is not grown."""
    options = validate(OPTIONS[arm.method], dict(arm.options), f"the options of arm {arm.name!r}")
    if arm.placement is not None or arm.new_layers is not None or arm.per_gap != 1:
        raise DeepenError(
            f"Arm {arm.name!r} is not grown; leave placement, new_layers and per_gap out."
        )
    return options


def _parameters(study: Study, base: Model) -> int:
    """Count what the first grown arm trains that trains its new blocks alone."""
    for arm in study.all_arms:
        own = arm.training.get("trains", "auto") not in ("auto", "new_blocks")
        if not arm.is_grown or own or arm.training.get("phases"):
            continue
        record = _grown(study, arm, base)
        if record.step.trains == "new_blocks":
            return record.new_parameters
    raise DeepenError(
        "No grown arm of the study says how many parameters lora, top-blocks and wider may train; "
        "add one, or give the study parameters."
    )


def _grown(study: Study, arm: Arm, base: Model) -> GrowRecord:
    """Say what an arm's model would be."""
    growth = resolve(base, arm.request(study.new_layers, study.seeds[0]))
    return grow_record(growth, lineage_of(growth))


def _part(arm: Arm, base: Model, parameters: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the settings of training that say what an alternative trains."""
    options = _options(arm)
    if isinstance(options, LoraOptions):
        blocks = _top(base, options.blocks or base.depth)
        rank = options.rank or lora_rank(base, parameters(), blocks)
        lora: dict[str, Any] = {"rank": rank, "blocks": "all" if not options.blocks else blocks}
        return {"lora": lora | ({"alpha": options.alpha} if options.alpha else {})}
    if isinstance(options, TopBlocksOptions):
        return {"trains": _top(base, options.blocks or _fitting(base, parameters()))}
    assert isinstance(options, WiderOptions)
    return {"neurons": options.neurons or wider_neurons(base, parameters())}


def _top(base: Model, blocks: int) -> list[int]:
    """Return the indices of the top blocks."""
    if blocks > base.depth:
        raise DeepenError(f"There are no {blocks} blocks to train: the base has {base.depth}.")
    return list(range(base.depth - blocks, base.depth))


def _fitting(base: Model, parameters: int) -> int:
    """Return how many top blocks have at most that many parameters, at least one."""
    left, blocks = parameters, 0
    while blocks < base.depth and (left := left - base.parameters_of(base.depth - 1 - blocks)) >= 0:
        blocks += 1
    return max(1, blocks)


def _equal_flops(study: Study, base: Model) -> Study:
    """Let every arm run until it has cost what the reference costs."""
    training, length = study.training, study.data.sequence_length
    per_step = training.batch_size * length
    batch = {
        arm.name: _training(study, arm).batch_size / training.batch_size for arm in study.all_arms
    }
    steps = training.max_steps or (training.max_tokens or 0) // per_step
    if not steps:
        raise DeepenError(
            "A budget in FLOPs is that of the reference's steps; give training.max_steps or "
            "training.max_tokens instead of epochs."
        )
    # In steps of the study's batch.
    costs = {arm.name: _cost(study, arm, base, batch[arm.name]) for arm in study.all_arms}
    (reference,) = (arm for arm in study.all_arms if study.role(arm) == "reference")
    budget = costs[reference.name](steps) + _protecting(study, reference, base)
    arms: Sequence[Arm] = [
        _with(
            arm,
            arm.training
            | {"max_steps": _steps(budget - _protecting(study, arm, base), costs[arm.name])},
        )
        for arm in study.all_arms
    ]
    plain = training.model_copy(update={"max_tokens": None, "max_steps": steps})
    settled = study.model_copy(update={"arms": arms, "training": plain})
    for arm in arms:
        ends(_training(settled, arm), arm.training["max_steps"])
    return settled


def _steps(budget: float, cost: Callable[[int], float]) -> int:
    """Return the steps that cost at most what there is to spend, at least one."""
    budget *= 1 + _ROUNDING
    few, many = 1, 2
    while cost(many) <= budget:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if cost(middle) <= budget else (few, middle)
    return few


def _cost(study: Study, arm: Arm, base: Model, batch: float) -> Callable[[int], float]:
    """Return what so many steps cost an arm, which may have phases of different costs.

    Args:
        study: The study.
        arm: The arm.
        base: The study's base.
        batch: The arm's batch, in the study's.
    """
    training, each = _training(study, arm), _flops_per_token(study, arm, base)

    def cost(steps: int) -> float:
        # So few steps as are tried here may end before a phase begins.
        after = [min(end, steps) for end in borders(training, steps)]
        pairs = zip(each, itertools.pairwise(after), strict=True)
        return batch * sum(flops * (end - begin) for flops, (begin, end) in pairs)

    return cost


def _protecting(study: Study, arm: Arm, base: Model) -> float:
    """Return what it costs an arm to read the text it protects, in FLOPs of a step's sequence."""
    training, length = _training(study, arm), study.data.sequence_length
    if training.protect is None:
        return 0.0
    _, depth = _trained_model(study, arm, base)
    forward = reading_flops_per_token(base, depth, length)
    if training.neurons:
        forward += 2.0 * neuron_parameters(base, training.neurons)
    sequences = max(1, training.protect.max_tokens // length)
    return forward * sequences / study.training.batch_size * len(training.phases or [None])


def _training(study: Study, arm: Arm) -> TrainingConfig:
    """Return how an arm is pre-trained."""
    return study.recipe(arm, 0, "cpt", study.base, study.arm_folder(arm, 0)).training


def _flops_per_token(study: Study, arm: Arm, base: Model) -> list[float]:
    """Return what one trained token costs an arm in each phase, by our own count."""
    training = _training(study, arm)
    length = study.data.sequence_length
    if training.neurons:
        # Forward and through activations, the new neurons cost what their weights' products do.
        through = 4.0 * neuron_parameters(base, training.neurons)
        return [through + neuron_flops_per_token(base, training.neurons, length)]
    config, depth = _trained_model(study, arm, base)
    costs = []
    for trains in parts(config, depth, training, arm.name):
        if trains.lora:
            costs.append(lora_flops_per_token(base, trains.lora.rank, trains.blocks, length))
            continue
        costs.append(
            training_flops_per_token(
                base,
                trains.blocks,
                depth,
                length,
                trains_everything=trains.everything,
                also=trains.outside,
            )
        )
    return costs


def _trained_model(study: Study, arm: Arm, base: Model) -> tuple[Mapping[str, Any], int]:
    """Return config.json and depth of the model that an arm trains."""
    if not arm.is_grown:
        return base.source.config, base.depth
    growth = resolve(base, arm.request(study.new_layers, study.seeds[0]))
    return config_of(growth, lineage_of(growth)), growth.plan.depth
