"""What training may have changed in a grown model: read from the lineage, to hold tensors to it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepen.base.anatomy import BlockAnatomy, Family
from deepen.base.anatomy.layouts import assemble
from deepen.base.checkpoint import Source, as_bytes, config_object
from deepen.base.layers import NeuronSlice, last_neurons, linear_layers
from deepen.base.model import Model
from deepen.planning.plan import Keep, Plan
from deepen.records.growth import FIELD, BaseIdentity, Lineage, Step, Training

_WRITTEN_ANEW = {FIELD, "transformers_version", "dtype", "torch_dtype", "architectures"}
"""What of config.json a library that trains may change as it saves a model."""
_WRITTEN_ANEW |= {"_name_or_path", "use_cache"}


def block_digest(family: Family, index: int, block: BlockAnatomy, source: Source) -> str:
    """Return the SHA-256 of a block's parameters, under the names that they have inside it.

    Args:
        family: The family's table, with the names that the source uses.
        index: The block.
        block: What it is made of.
        source: Holds its tensors.
    """
    digest = hashlib.sha256()
    for suffix, spec in sorted(block.stored.items()):
        if not spec.is_buffer:
            tensor = source.load(family.name(index, suffix))
            digest.update(f"{suffix}\0{tuple(tensor.shape)}\0".encode())
            # In float32, so that another dtype alone is no change.
            digest.update(as_bytes(tensor.float()).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Since:
    """What happened to a model since it was some base."""

    base: BaseIdentity | None
    """The base, as it was recorded."""
    steps: list[Step]
    """The growths, the earliest first."""
    trainings: list[Training]
    """The trainings, blocks counted as in the last model."""


def since(lineage: Lineage, fingerprint: str) -> Since:
    """Return what happened since a base; where the lineage does not know it, since its last growth.

    Args:
        lineage: The grown or trained model's.
        fingerprint: The base's.
    """
    steps, trainings = lineage.steps, lineage.trainings
    moments: list[tuple[BaseIdentity | None, int, list[Training]]] = [
        (step.base, number, [t for t in trainings if t.after_steps > number])
        for number, step in enumerate(steps)
    ]
    unknown = moments[-1:]
    moments += [(t.base, t.after_steps, trainings[i:]) for i, t in enumerate(trainings)]
    known = [moment for moment in moments if moment[0] and moment[0].fingerprint == fingerprint]
    base, number, after = (known or unknown or moments)[0]
    later = [Plan.from_json(step.plan) for step in steps]
    return Since(base, steps[number:], [_renumbered(t, later[t.after_steps :]) for t in after])


def _renumbered(training: Training, later: list[Plan]) -> Training:
    """Count a training's blocks as in the model that later growths made of its result."""
    blocks, before = training.blocks, training.new_blocks_before
    for plan in later:
        now = [index for index, block in enumerate(plan.blocks) if isinstance(block, Keep)]
        blocks = [now[index] for index in blocks]
        before = {now[index]: digest for index, digest in before.items()}
    return training.model_copy(update={"blocks": blocks, "new_blocks_before": before})


def may_differ(grown: Model, trainings: list[Training]) -> dict[str, NeuronSlice | None]:
    """Name the stored tensors that trainings may have changed.

    Args:
        grown: The trained model.
        trainings: Its trainings, blocks counted as in it.

    Returns:
        Name → the neurons that may differ; ``None`` if all of the tensor may.
    """
    result: dict[str, NeuronSlice | None] = {}
    for training in trainings:
        if training.neurons is not None:
            infos, name = grown.source.shapes, grown.source.name
            for part in last_neurons(grown.anatomy, infos, training.neurons, name):
                other = result.get(part.name, part)
                # Of two trainings of the same neurons, the one of more holds the other.
                more = other is None or len(other.positions) >= len(part.positions)
                result[part.name] = other if more else part
            continue
        names = _adapted(grown, training) if training.lora else _whole(grown, training)
        result |= dict.fromkeys(names)
    return result


def _whole(grown: Model, training: Training) -> Iterator[str]:
    """Yield the tensors that trained as they are."""
    family, blocks, outside = grown.family, set(training.blocks), set(training.outside)
    for name in grown.source.infos:
        place = family.split(name)
        inside = place[0] in blocks if place else family.part(name) in outside
        # deepen trains on text, which changes nothing of what sees.
        sees = family.tower and family.is_beside(name) and training.stage != "elsewhere"
        if (training.everything and not sees) or inside:
            yield name


def _adapted(grown: Model, training: Training) -> Iterator[str]:
    """Yield the tensors that adapters were merged into."""
    memory, layers = grown.in_memory, set[str]()
    for index in training.blocks:
        layers |= {f"{layer.path}.weight" for layer in linear_layers(grown, index)}
    for index in training.blocks:
        for suffix, spec in grown.anatomy.blocks[index].stored.items():
            if spec.is_buffer:
                continue
            name = grown.family.name(index, suffix)
            made_of = set[str]()

            def load(part: str, made_of: set[str] = made_of) -> Tensor:
                made_of.add(part)
                return torch.empty(memory.shapes[part], device="meta")

            assemble(name, grown.source.infos[name].shape, grown.anatomy, memory.anatomy, load)
            if made_of & layers:
                yield name


def differs(ours: Tensor, theirs: Tensor, allowed: NeuronSlice | None = None) -> bool:
    """Whether any bit differs, but for the neurons that may.

    Args:
        ours: A tensor of the trained model.
        theirs: The base's, in the same dtype.
        allowed: Which neurons may differ.
    """
    if allowed is not None:
        rest = sorted({*range(ours.shape[allowed.axis])} - {*allowed.positions})
        index = torch.tensor(rest)
        ours, theirs = (tensor.index_select(allowed.axis, index) for tensor in (ours, theirs))
    # Bytes and not numbers: NaN equals NaN, and 0.0 does not equal -0.0.
    return not torch.equal(as_bytes(ours), as_bytes(theirs))


def stored_dtype(trainings: list[Training]) -> str | None:
    """Return the dtype that trainings stored all weights as; ``None`` if they kept theirs."""
    chosen = [training.stored_dtype for training in trainings if training.stored_dtype]
    return chosen[-1] if chosen else None


def trained_elsewhere(lineage: Lineage, base: Source, grown: Source) -> Training:
    """Describe a training that no lineage tells of: of what the latest method trains.

    Args:
        lineage: The trained model's.
        base: The base; where it has no float32 and the grown model nothing else, all weights were
            stored anew.
        grown: The trained model.
    """
    everything = not lineage.steps or lineage.steps[-1].trains == "everything"
    dtypes = {info.dtype for info in grown.infos.values() if info.is_float}
    was = {info.dtype for info in base.infos.values() if info.is_float}
    return Training(
        stage="elsewhere",
        after_steps=len(lineage.steps),
        everything=everything,
        blocks=lineage.new_blocks,
        stored_dtype="F32" if dtypes == {"F32"} != was else None,
    )


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers reads from a config.json, however it is written down."""
    read = config_object(config).to_dict()
    return {field: value for field, value in read.items() if field not in _WRITTEN_ANEW}
