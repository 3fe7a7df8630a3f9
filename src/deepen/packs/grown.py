"""A grown model as what it is made of: its base, which it holds, and the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

from torch import Tensor

from deepen.base.checkpoint import DTYPES, FolderSource, Source, TensorInfo
from deepen.base.identity import difference
from deepen.base.model import Model, as_model
from deepen.common.errors import DeepenError
from deepen.growth.base_files import BASE_FILES, read_base_files
from deepen.growth.write import layout_of
from deepen.planning.plan import Keep, Plan
from deepen.records.growth import BaseIdentity, Step, Training, read_lineage
from deepen.records.pack import BaseFiles
from deepen.verification.trained import may_differ, since


@dataclass(frozen=True)
class Grown:
    """A grown checkpoint, and which of its growths are looked at."""

    model: Model
    """The checkpoint."""
    folder: Path
    """Where it lies."""
    steps: list[Step]
    """The growths that lead from the base to it."""
    trainings: list[Training]
    """What was trained since, blocks counted as in it."""
    base_files: BaseFiles | None
    """What of the base's files it does not hold, if it was kept."""

    @property
    def base(self) -> BaseIdentity:
        """What was grown."""
        return self.steps[0].base

    @cached_property
    def plan(self) -> Plan:
        """The stack, as one growth of the base."""
        return reduce(Plan.then, (Plan.from_json(step.plan) for step in self.steps))

    @cached_property
    def kept(self) -> dict[str, str]:
        """Name of a tensor that the base has too → its name in the base."""
        family, anatomy, plan = self.model.family, self.model.anatomy, self.plan
        names = {name: name for name in anatomy.outside}
        for index, block in enumerate(plan.blocks):
            if isinstance(block, Keep):
                for suffix in anatomy.blocks[index].stored:
                    names[family.name(index, suffix)] = family.name(block.source, suffix)
        for name, (after, suffix) in anatomy.trailing.items():
            names[name] = family.name(plan.base_depth + after, suffix)
        return names

    @cached_property
    def changed(self) -> list[str]:
        """The kept tensors that a training names: they may no longer be the base's."""
        return [name for name in may_differ(self.model, self.trainings) if name in self.kept]

    def named(self) -> str:
        """List the changed tensors, or count them if they are many."""
        few = ", ".join(self.changed[:3])
        return few + (f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else "")


def open_grown(folder: Path, growths: int | None = None) -> Grown:
    """Open a grown checkpoint, trained or not.

    Args:
        folder: The checkpoint.
        growths: How many growths to look at, the latest ones; by default all.

    Raises:
        DeepenError: It cannot be read, was not grown, or not that many times.
    """
    source = FolderSource(folder)
    lineage = read_lineage(source.config)
    if lineage is None:
        raise DeepenError(
            f"{source.name!r} has no deepen entry in its config.json; "
            f"give a checkpoint that deepen grew."
        )
    count = len(lineage.steps) if growths is None else growths
    if not 1 <= count <= len(lineage.steps):
        raise DeepenError(
            f"{source.name!r} was grown {len(lineage.steps)} times, not {count}; "
            f"give a smaller --growths."
        )
    first = len(lineage.steps) - count
    past = since(lineage, lineage.steps[first].base.fingerprint)
    return Grown(
        model=as_model(source),
        folder=folder,
        steps=past.steps,
        trainings=past.trainings,
        base_files=read_base_files(folder, count),
    )


class BaseInside(Source):
    """The base as a grown model holds it: kept tensors, under the base's names and dtypes."""

    def __init__(self, grown: Grown, files: BaseFiles) -> None:
        """Look for the base's tensors in a grown model.

        Args:
            grown: The model.
            files: What it does not hold of the base's files: how tensors are stored.

        Raises:
            DeepenError: A tensor of the base is not there.
        """
        self.name, self.revision = grown.base.name, grown.base.revision
        self.config: Mapping[str, object] = {}
        self.infos: dict[str, TensorInfo] = {}
        for header in files.weights.values():
            self.infos |= layout_of(header)
        self._names = {theirs: ours for ours, theirs in grown.kept.items()}
        self._grown = grown.model.source
        for name in self.infos:
            if name not in self._names:
                raise DeepenError(
                    f"{self._grown.name} lacks the base's tensor {name!r}; {BASE_FILES} is not "
                    f"its own: copy the one of the grown checkpoint beside it."
                )

    def load(self, name: str) -> Tensor:
        """Return one tensor in the dtype that the base stores it in."""
        return self._grown.load(self._names[name]).to(DTYPES[self.infos[name].dtype])


def check_base_inside(grown: Grown) -> str | None:
    """Say what is wrong if a grown model does not hold its base, which no training explains.

    Returns:
        ``None`` if it does, if a training names what may have changed, or if it cannot be told.
    """
    if grown.base_files is None or grown.changed:
        return None
    inside = BaseInside(grown, grown.base_files)
    differs = difference(inside, grown.base.fingerprint, grown.base.sha256)
    if differs is None:
        return None
    return (
        f"What {grown.model.source.name} keeps of its base {differs}: kept tensors were "
        f"changed, and no training in its lineage names them (`deepen verify BASE GROWN` does)"
    )
