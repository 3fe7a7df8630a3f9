"""Grow again what a lineage says was grown, and say whether the bytes agree; nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, equal

from deepen import methods
from deepen.base.checkpoint import Source, as_bytes, info_of
from deepen.base.identity import difference
from deepen.base.model import Model, open_model
from deepen.base.registry import named
from deepen.common import device as devices
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.common.system import versions
from deepen.growth.fuse import Growth, grown_tensors
from deepen.growth.preview import config_of, lineage_of
from deepen.methods.method import parse_options
from deepen.packs.combine import HOWS
from deepen.packs.grown import Grown, open_grown
from deepen.planning.plan import Plan
from deepen.records.growth import FIELD, GrowRequest, Step
from deepen.records.pack import ReproduceRecord
from deepen.records.verification import Check
from deepen.verification.trained import block_digest


def reproduce(
    grown: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> ReproduceRecord:
    """Run the latest growth of a checkpoint again, and compare every byte of what it made.

    Of a new block that was trained since, the SHA-256 that its training recorded is compared;
    nothing else that training may have changed is.

    Args:
        grown: The grown checkpoint, trained or not.
        base: What it was grown from; by default the hub id that was recorded, or the folder of
            that name here or beside ``grown``.
        revision: Branch, tag or commit on the hub; by default the recorded one.
        device: Where to compute; by default the type of device that was recorded.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: The checkpoint was not grown by a method, or its base is not there or another.
    """
    opened = open_grown(Path(grown), 1)
    (step,) = opened.steps
    if step.method in HOWS:
        raise DeepenError(
            f"{opened.model.source.name} was combined from packs and not grown by a method; "
            f"`deepen combine` makes it again."
        )
    model = _base(opened, base, revision)
    growth = _growth(step, model, device or step.device, progress)
    found = _compared(opened, growth, progress)
    checks = [_check("kept tensors", *found.kept), _check("new blocks", *found.new)]
    if not opened.trainings:
        checks.append(_check_config(opened, growth))
    now = versions()
    return ReproduceRecord(
        grown=opened.model.source.name,
        base=step.base,
        method=step.method,
        checks=checks,
        notes=[
            f"{name} was {was} and is {now.get(name, 'missing')}: last bits may differ."
            for name, was in step.versions.items()
            if now.get(name) != was
        ],
    )


def _base(grown: Grown, base: str | Path | None, revision: str | None) -> Model:
    """Open what was grown.

    Raises:
        DeepenError: It is not there, or another.
    """
    recorded = grown.base
    if base is None:
        remote = recorded.revision is not None or named(recorded.name) is not None
        folders = [Path(recorded.name), grown.folder.resolve().parent / recorded.name]
        here = next((folder for folder in folders if folder.is_dir()), None)
        base = recorded.name if remote else here
        revision = revision or recorded.revision
    if base is None:
        raise DeepenError(
            f"{grown.model.source.name} was grown from {recorded.name!r}, which is no folder here "
            f"or beside it; pass --base."
        )
    model = open_model(base, revision, quantised=True)
    if differs := difference(model.source, recorded.fingerprint, recorded.sha256):
        raise DeepenError(
            f"{str(base)!r} {differs}, as {recorded.name} has that was grown; pass that one as "
            f"--base."
        )
    return model


def _growth(step: Step, base: Model, device: str, progress: Progress) -> Growth:
    """Return the growth that a step records."""
    method = methods.get(step.method)
    request = GrowRequest(
        method=step.method,
        new_layers=len(step.new_blocks),
        placement=step.placement,
        options=step.options,
        seed=step.seed,
        device=device,
    )
    options, where = parse_options(method, step.options), devices.choose(device)
    plan = Plan.from_json(step.plan)
    return Growth(base, request, plan, method, options, where, progress, step.scores)


@dataclass
class _Compared:
    """What agreed and what did not."""

    kept: tuple[list[str], int] = field(default_factory=lambda: ([], 0))
    """Differing kept tensors, and how many were compared."""
    new: tuple[list[str], int] = field(default_factory=lambda: ([], 0))
    """The same of new blocks."""


def _compared(grown: Grown, growth: Growth, progress: Progress) -> _Compared:
    """Make every tensor again and compare it with the grown checkpoint's."""
    source, result, total = grown.model.source, _Compared(), len(growth.layout)
    changed, trained = {*grown.changed}, _digests(grown)
    blocks: dict[int, dict[str, Tensor]] = {index: {} for index in trained}
    for done, (name, made) in enumerate(grown_tensors(growth)):
        progress("growing again", done / total)
        place = growth.base.family.split(name)
        if place and place[0] in blocks:
            blocks[place[0]][name] = made
            if blocks[place[0]].keys() >= _stored(growth, place[0]):
                digest = _digest(growth, place[0], blocks[place[0]])
                blocks[place[0]] = {}
                result.new = _counted(
                    result.new, f"block {place[0]} before training", digest == trained[place[0]]
                )
        elif name not in changed:
            there = source.load(name) if name in source.infos else None
            same = there is not None and equal(as_bytes(made.to(there.dtype)), as_bytes(there))
            if name in grown.kept:
                result.kept = _counted(result.kept, name, same)
            else:
                result.new = _counted(result.new, name, same)
    progress("growing again", 1.0)
    return result


def _counted(before: tuple[list[str], int], name: str, same: bool) -> tuple[list[str], int]:
    """Count one comparison."""
    return before[0] + ([] if same else [name]), before[1] + 1


def _digests(grown: Grown) -> dict[int, str]:
    """Return the SHA-256 that trained new blocks had at first."""
    digests: dict[int, str] = {}
    for training in grown.trainings:
        digests = training.new_blocks_before | digests
    return digests


def _stored(growth: Growth, index: int) -> set[str]:
    """Name the tensors of a new block."""
    parent = growth.plan.type_parents[index]
    family = growth.base.family
    return {family.name(index, suffix) for suffix in growth.base.anatomy.blocks[parent].stored}


class _Made(Source):
    """Tensors that were just made."""

    revision = None

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.name, self.config, self._tensors = "made", {}, tensors
        self.infos = {name: info_of(tensor, name) for name, tensor in tensors.items()}

    def load(self, name: str) -> Tensor:
        """Return one of them."""
        return self._tensors[name]


def _digest(growth: Growth, index: int, tensors: Mapping[str, Tensor]) -> str:
    """Return a block's SHA-256 as training records it."""
    base, parent = growth.base, growth.plan.type_parents[index]
    return block_digest(base.family, index, base.anatomy.blocks[parent], _Made(tensors))


def _check_config(grown: Grown, growth: Growth) -> Check:
    """Compare config.json, versions of software apart."""
    expected, given = (
        dict(config_of(growth, lineage_of(growth, grown.base.sha256))),
        dict(grown.model.source.config),
    )
    for config in (expected, given):
        *_, last = config[FIELD]["steps"]
        config[FIELD] = {**config[FIELD], "steps": [{**last, "versions": {}, "device": ""}]}
    fields = sorted(expected.keys() | given.keys())
    differing = [name for name in fields if expected.get(name) != given.get(name)]
    return _check("config.json", differing, len(fields), "fields")


def _check(name: str, differing: list[str], count: int, what: str = "tensors") -> Check:
    """Say how much agrees."""
    if not differing:
        return Check(name=name, passed=True, detail=f"{count} {what} agree")
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    detail = f"{len(differing)} of {count} {what} differ: {', '.join(differing[:3])}{more}"
    return Check(name=name, passed=False, detail=detail)
