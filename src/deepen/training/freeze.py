"""What trains: read from the checkpoint's ``deepen`` entry, or named in the recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepen.base.anatomy import Family
from deepen.common.errors import DeepenError
from deepen.records.growth import read_lineage
from deepen.training.recipe import TrainingConfig

_OUTSIDE = frozenset({"embeddings", "norm", "head"})


@dataclass(frozen=True)
class Trains:
    """The part of a model that is trained."""

    everything: bool
    """Whether nothing is frozen."""
    blocks: tuple[int, ...]
    """Indices of the trained blocks; all of them if everything trains."""
    outside: frozenset[str]
    """What is trained outside all blocks: ``embeddings``, the last ``norm``, the ``head``."""

    def includes(self, family: Family, name: str) -> bool:
        """Whether a tensor is trained."""
        place = family.split(name)
        if self.everything or place is None:
            return self.everything or family.part(name) in self.outside
        return place[0] in self.blocks


def trainable(config: Mapping[str, Any], depth: int, training: TrainingConfig, name: str) -> Trains:
    """Decide what trains.

    Args:
        config: The checkpoint's config.json; its ``deepen`` entry names the new blocks.
        depth: Number of blocks.
        training: What the recipe asks for.
        name: What to call the checkpoint in an error.

    Raises:
        DeepenError: The checkpoint was not grown and the recipe names no blocks, a block does not
            exist, or nothing would be trained.
    """
    if training.trains == "everything":
        return _everything(depth)
    if isinstance(training.trains, list):
        blocks = sorted(set(training.trains))
    else:
        lineage = read_lineage(config)
        if lineage is None:
            raise DeepenError(
                f"{name} was not grown by deepen, so nothing says which blocks are new; name them, "
                f"for example training.trains=[{depth - 2},{depth - 1}], or set "
                f"training.trains=everything."
            )
        if training.trains == "auto" and lineage.steps[-1].trains == "everything":
            return _everything(depth)
        blocks = sorted(lineage.new_blocks)
    if blocks and blocks[-1] >= depth:
        raise DeepenError(
            f"There is no block {blocks[-1]} to train: {name} has blocks 0 to {depth - 1}."
        )
    also = set(training.also)
    if "head" in also and config.get("tie_word_embeddings"):
        also.add("embeddings")
    if not blocks and not also:
        raise DeepenError(
            f"Nothing would be trained: name blocks of {name} in training.trains, or more in "
            f"training.also."
        )
    return Trains(False, tuple(blocks), frozenset(also))


def _everything(depth: int) -> Trains:
    """Train all there is."""
    return Trains(True, tuple(range(depth)), _OUTSIDE)


def freeze(module: Any, trains: Trains, family: Family) -> None:  # noqa: ANN401 (no types there)
    """Let gradients flow into what trains and into nothing else."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains.includes(family, name))


def counts(module: Any) -> tuple[int, int]:  # noqa: ANN401
    """Count all parameters and the trained ones; tied ones count once."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
