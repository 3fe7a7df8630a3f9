"""A model as transformers holds it in memory, its weights left where they are."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from deepen.base.anatomy import Anatomy, dissect
from deepen.base.anatomy.family import Config
from deepen.base.anatomy.layouts import assemble
from deepen.base.checkpoint import Source, transformers_config


def _nothing(name: str) -> None:
    """Have no other tensor."""


class Weights(Mapping[str, Tensor]):
    """A source's tensors in float32, loaded on access, as the model in memory has them."""

    def __init__(self, load: Callable[[str], Tensor], names: Mapping[str, str]) -> None:
        """Load nothing yet.

        Args:
            load: Loads a tensor by the name that it has in memory.
            names: Every name in memory → the one that it is loaded by, where tensors are tied.
        """
        self._load, self._names = load, names
        self._instead: Callable[[str], Tensor | None] = _nothing

    def stored(self, name: str) -> Tensor:
        """Load a tensor in its stored dtype."""
        return self._load(self._names.get(name, name))

    def __getitem__(self, name: str) -> Tensor:
        """Load a tensor in float32."""
        if (other := self._instead(name)) is not None:
            return other
        # Copied, because products over memory that is not aligned can round otherwise, and shards
        # align to 8 bytes at most.
        return self.stored(name).to(torch.float32, copy=True)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in memory."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._names)

    @contextmanager
    def replaced(self, instead: Callable[[str], Tensor | None]) -> Iterator[None]:
        """Hand out other tensors for a while; those that it has none for stay as they are."""
        before, self._instead = self._instead, instead
        try:
            yield
        finally:
            self._instead = before


@dataclass(frozen=True)
class InMemory:
    """A model as transformers holds it, without its weights."""

    module: nn.Module
    """The model; its parameters are on the meta device, its buffers are real."""
    anatomy: Anatomy
    """Its tensors under the names that it uses."""
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name → shape, each tensor once."""
    weights: Weights
    """What its weights are, when it runs."""

    @classmethod
    def of(cls, source: Source, resolved: Config, anatomy: Anatomy) -> Self:
        """Build transformers' model of a config and match it against the family's table.

        Args:
            source: The checkpoint.
            resolved: Its config with the family's defaults filled in.
            anatomy: What its blocks are made of.
        """
        module = empty_model(source)
        aliases = getattr(module, "all_tied_weights_keys", {})
        shapes = {n: tuple(t.shape) for n, t in module.state_dict().items() if n not in aliases}
        own = dissect(anatomy.table, resolved, shapes, source.shapes)
        names = {name: name for name, _ in module.named_parameters(remove_duplicate=False)}

        def load(name: str) -> Tensor:
            return assemble(name, shapes[name], own, anatomy, source.load)

        return cls(module, own, shapes, Weights(load, names | aliases))

    def load(self, name: str) -> Tensor:
        """Load a tensor by the name that it has in memory, in its stored dtype."""
        return self.weights.stored(name)


def empty_model(source: Source) -> nn.Module:
    """Build the transformers model of a source's config, without weights but with its buffers."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = transformers_config(source)
    with init_empty_weights(include_buffers=False):
        module: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return module.eval()
