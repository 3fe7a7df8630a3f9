"""Run a checkpoint of any size in float32 with about one tensor in memory.

The model is built without weights; accelerate's offload hooks fetch each tensor from the source
when its module runs and drop it afterwards. Where transformers lays tensors out otherwise than the
checkpoint does, each one is put together when it is fetched.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepen.base.anatomy import Anatomy, dissect
from deepen.base.anatomy.layouts import assemble, missing
from deepen.base.checkpoint import Source
from deepen.base.model import Model, transformers_config
from deepen.common.system import return_freed_memory


class Weights(Mapping[str, Tensor]):
    """A source's tensors in float32, loaded on access, as the model in memory has them."""

    def __init__(self, load: Callable[[str], Tensor], names: Mapping[str, str]) -> None:
        """Load nothing yet.

        Args:
            load: Loads a tensor by the name that it has in memory.
            names: Every name in memory → the one that it is loaded by, where tensors are tied.
        """
        self._load, self._names = load, names
        self._instead: Mapping[str, Tensor] = {}

    def stored(self, name: str) -> Tensor:
        """Load a tensor in its stored dtype."""
        return self._load(self._names.get(name, name))

    def __getitem__(self, name: str) -> Tensor:
        """Load a tensor in float32."""
        with suppress(KeyError):
            return self._instead[name]
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
    def replaced(self, others: Mapping[str, Tensor]) -> Iterator[None]:
        """Hand out other tensors for a while; one that raises KeyError stays as it is."""
        before, self._instead = self._instead, others
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
    def of(cls, model: Model) -> Self:
        """Build transformers' model of a config and match it against the family's table."""
        module = empty_model(model.source)
        aliases = getattr(module, "all_tied_weights_keys", {})
        shapes = {n: tuple(t.shape) for n, t in module.state_dict().items() if n not in aliases}
        anatomy = dissect(model.anatomy.table, model.resolved, shapes, model.source.shapes)
        names = {name: name for name, _ in module.named_parameters(remove_duplicate=False)}

        def load(name: str) -> Tensor:
            return assemble(name, shapes[name], anatomy, model.anatomy, model.source.load)

        return cls(module, anatomy, shapes, Weights(load, names | aliases))

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


def missing_and_extra(model: Model) -> tuple[list[str], list[str]]:
    """Compare a checkpoint's tensors with what ``from_pretrained`` would look for.

    Returns:
        The tensors that transformers' model needs and the checkpoint lacks, and those it has too
        many.
    """
    memory, ours = model.in_memory, model.anatomy
    lacking = [part for name in memory.shapes for part in missing(name, memory.anatomy, ours)]
    carried = model.family.carried
    kept = [n for n in model.source.infos if n not in ours.trailing and not n.startswith(carried)]
    extra = [part for name in kept for part in missing(name, ours, memory.anatomy)]
    tied = set(getattr(memory.module, "all_tied_weights_keys", {}))
    return sorted(set(lacking)), sorted(set(extra) - tied)


@contextmanager
def streamed(model: Model, device: torch.device) -> Iterator[InMemory]:
    """Make a model ready to run in float32, its weights fetched as its modules run.

    Args:
        model: The model.
        device: Where to compute.
    """
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    memory = model.in_memory
    module = memory.module
    for name, buffer in module.named_buffers():
        if name in memory.shapes and _is_learned(memory.anatomy, name):
            buffer.copy_(memory.load(name))
    handles = [
        block.register_forward_hook(lambda *_: return_freed_memory())
        for block in module.get_submodule(model.blocks_path).children()
    ]
    if model.family.embeds_apart:
        handles.append(module.register_forward_pre_hook(_embedded, with_kwargs=True))
    cpu_offload(
        module,
        execution_device=device,
        state_dict=memory.weights,
        preload_module_classes=list(model.family.preload),
    )
    try:
        with torch.no_grad():
            yield memory
    finally:
        remove_hook_from_module(module, recurse=True)
        for handle in handles:
            handle.remove()


def logits(model: Model, tokens: Tensor, device: torch.device) -> Tensor:
    """Return a causal language model's logits ``[batch, length, vocabulary]`` in float32.

    Args:
        model: The model.
        tokens: Token ids ``[batch, length]``.
        device: Where to compute.
    """
    with streamed(model, device) as memory:
        return memory.module(tokens.to(device), use_cache=False).logits.cpu()


def _embedded(
    module: Any,  # noqa: ANN401 (a transformers model)
    args: tuple[Tensor],
    kwargs: dict[str, Any],
) -> tuple[tuple[()], dict[str, Any]]:
    """Give a model the embeddings of its tokens instead of the tokens."""
    return (), {"inputs_embeds": module.get_input_embeddings()(*args), **kwargs}


def _is_learned(anatomy: Anatomy, name: str) -> bool:
    """Whether a buffer that checkpoints hold is part of what the model has learned."""
    place = anatomy.family.split(name)
    return place is None or not anatomy.blocks[place[0]].stored[place[1]].is_buffer
