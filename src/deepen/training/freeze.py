"""What trains: read from the checkpoint's ``deepen`` entry, or named in the recipe."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deepen.base.anatomy import Family
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.records.growth import Lineage, read_lineage
from deepen.training.lora import add_adapters, check_peft, merged, plain
from deepen.training.neurons import check_neurons, divide_neurons, joined
from deepen.training.recipe import LoraConfig, TrainingConfig

_OUTSIDE = frozenset({"embeddings", "norm", "head"})


@dataclass(frozen=True)
class Trains:
    """The part of a model that is trained."""

    everything: bool
    """Whether nothing is frozen."""
    blocks: tuple[int, ...]
    """Indices of the blocks in which something trains; all of them if everything does."""
    outside: frozenset[str]
    """What is trained outside all blocks: ``embeddings``, the last ``norm``, the ``head``."""
    lora: LoraConfig | None = None
    """The adapters, if they are all that trains in ``blocks``."""
    neurons: int | None = None
    """How many neurons of each FFN train, if they are all that does."""

    @property
    def words(self) -> str:
        """What trains, in words."""
        if self.everything:
            return "everything"
        blocks = f"blocks {', '.join(map(str, self.blocks)) or 'none'}"
        if self.lora:
            return f"adapters of rank {self.lora.rank} on {blocks}"
        if self.neurons:
            return f"the last {self.neurons:,} neurons of every FFN"
        return ", ".join([blocks, *sorted(self.outside)])

    def includes(self, family: Family, name: str) -> bool:
        """Whether a tensor is trained, all of it and as it is."""
        # Text alone shows nothing of what sees how to change.
        if self.lora or self.neurons or (family.tower and family.is_beside(name)):
            return False
        place = family.split(name)
        if self.everything or place is None:
            return self.everything or family.part(name) in self.outside
        return place[0] in self.blocks

    def __or__(self, other: "Trains") -> "Trains":
        """Return what one of the two trains."""
        return replace(
            self,
            everything=self.everything or other.everything,
            blocks=tuple(sorted({*self.blocks, *other.blocks})),
            outside=self.outside | other.outside,
        )


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
    if training.lora or training.neurons:
        return _a_part(config, depth, training, name)
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
        idle = training.trains == "auto" and lineage.steps[-1].trains == "nothing"
        blocks = [] if idle else sorted(lineage.new_blocks)
    _check_blocks(blocks, depth, name)
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


def _a_part(config: Mapping[str, Any], depth: int, training: TrainingConfig, name: str) -> Trains:
    """Train adapters or neurons.

    Raises:
        DeepenError: The recipe asks for what cannot be had together, or for blocks that are not.
    """
    key = "lora" if training.lora else "neurons"
    default = TrainingConfig()
    for other in ("also", "output_rate_factor", "output_lead", "block_rate_decay"):
        if getattr(training, other) != getattr(default, other):
            raise DeepenError(
                f"training.{key} trains nothing else, at one learning rate; leave out "
                f"training.{other}."
            )
    if training.lora is None:
        return Trains(False, tuple(range(depth)), frozenset(), neurons=training.neurons)
    check_peft()
    blocks = _adapted(training.lora, read_lineage(config), depth, name)
    return Trains(False, tuple(blocks), frozenset(), lora=training.lora)


def _adapted(lora: LoraConfig, lineage: Lineage | None, depth: int, name: str) -> list[int]:
    """Return the blocks that get adapters.

    Raises:
        DeepenError: There are none such.
    """
    if lora.blocks == "all":
        return list(range(depth))
    if not isinstance(lora.blocks, str):
        blocks = sorted(set(lora.blocks))
        _check_blocks(blocks, depth, name)
    elif lineage is None:
        raise DeepenError(
            f"{name} was not grown by deepen, so nothing says which blocks are {lora.blocks}; "
            f"name them in training.lora.blocks, or set it to all."
        )
    else:
        new = lineage.new_blocks
        blocks = [i for i in range(depth) if (i in new) == (lora.blocks == "new")]
    if not blocks:
        raise DeepenError("training.lora.blocks names no block, so nothing would be trained.")
    return blocks


def _check_blocks(blocks: list[int], depth: int, name: str) -> None:
    """Refuse blocks that do not exist.

    Raises:
        DeepenError: One does not.
    """
    if blocks and blocks[-1] >= depth:
        raise DeepenError(
            f"There is no block {blocks[-1]} to train: {name} has blocks 0 to {depth - 1}."
        )


def freeze(module: Any, trains: Trains, family: Family) -> None:  # noqa: ANN401 (no types there)
    """Let gradients flow into what trains and into nothing else."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trains.includes(family, name))


def adapt(module: Any, model: Model, trains: Trains, seed: int) -> None:  # noqa: ANN401
    """Add what trains beside frozen weights, if that is what the recipe asks for.

    Args:
        module: Transformers' model, frozen, changed in place.
        model: The checkpoint that it was loaded from.
        trains: What trains.
        seed: Of everything random.

    Raises:
        DeepenError: The model has no place for it.
    """
    if trains.lora:
        add_adapters(module, model, trains.lora, trains.blocks, seed)
    elif trains.neurons:
        check_neurons(model, trains.neurons)
        divide_neurons(module, model, trains.neurons)


class Whole(Mapping[str, Tensor]):
    """A trained module's parameters under the names that it had before ``adapt``."""

    def __init__(self, model: Model, trains: Trains, state: Mapping[str, Tensor]) -> None:
        """Make nothing yet.

        Args:
            model: The checkpoint that was trained.
            trains: What was trained.
            state: The module's parameters under the names that they have now.
        """
        self.changed: Mapping[str, Callable[[], Tensor]] = {}
        """What was trained beside frozen weights → how to make the whole of it."""
        if trains.lora:
            self.changed = merged(model, trains.lora, state)
        elif trains.neurons:
            self.changed = joined(model, trains.neurons, state)
        self._state, self._names = state, {plain(name): name for name in state}

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor on the CPU."""
        if name in self.changed:
            return self.changed[name]()
        return self._state[self._names[name]].detach().cpu()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(dict.fromkeys([*self.changed, *self._names]))

    def __len__(self) -> int:
        """Return how many there are."""
        return len([*self])


def names_of(module: Any, trains: Trains, family: Family) -> list[str]:  # noqa: ANN401
    """Return the names in memory of what trains, all of it and as it is."""
    return [name for name, _ in module.named_parameters() if trains.includes(family, name)]


def counts(module: Any) -> tuple[int, int]:  # noqa: ANN401
    """Count all parameters and the trained ones; tied ones count once."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
