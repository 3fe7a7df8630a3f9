"""What a text would teach a new block in each gap, from one pass of the base in both directions.

In every gap stands, in thought, a silent copy of the block above it (on top of all, of the last
one). The gradient of its output projections is that of its first training step, and the first step
of AdamW is the gradient's sign times the learning rate, whatever the gradient's size. Every second
sequence makes that step, and the others say what it promises. Blocks go through memory one by one,
down the stack; the states at all gaps are kept.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from deepen.base.anatomy import BlockAnatomy
from deepen.base.anatomy.tensors import Place
from deepen.base.model import Model
from deepen.base.streamed import run_explained
from deepen.common.progress import Progress, silent
from deepen.common.system import return_freed_memory
from deepen.planning.scoring.passes import Rest, running, skipped, split


def promises(
    model: Model, tokens: Tensor, device: torch.device, progress: Progress = silent
) -> list[float]:
    """Return what a text promises each gap, that above the last block included, from bottom to top.

    By how much the loss of sequences that did not make a new block's first step falls, to first
    order, in nats per token and unit of the learning rate. What blocks pass on beside the stream,
    and gates' choice of experts, are taken as given.

    Args:
        model: The model.
        tokens: Ids ``[sequences, length]``; two sequences at least.
        device: Where to compute.
        progress: Called with the finished share.

    Raises:
        DeepenError: transformers cannot run the model.
    """
    tokens, seen = tokens.to(device), _Pass()
    with running(model, device) as (module, blocks):
        with _recorded(blocks, seen):
            module(tokens, use_cache=False)
        gradient = _gradient_on_top(module, blocks, seen, tokens)
    found: list[float] = []
    with run_explained(model):
        for index in reversed(range(model.depth)):
            progress("scoring gaps", 1 - (index + 1) / model.depth)
            block = _Block(model, index, blocks[index], seen.calls[index], device)
            if not found:
                found.append(block.promise(seen.final, gradient))
            gradient = block.backward(gradient)
            if index:
                found.append(block.promise(seen.calls[index].state, gradient))
            del block
            return_freed_memory()
    progress("scored gaps", 1.0)
    return found[::-1]


@dataclass(frozen=True)
class _Call:
    """How a block was called."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def state(self) -> Tensor:
        """The stream as it came into the block."""
        state: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return state

    def on(self, state: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with another state, which some blocks change in place."""
        if self.args:
            return (state.clone(), *self.args[1:]), dict(self.kwargs)
        return (), {**self.kwargs, "hidden_states": state.clone()}


@dataclass
class _Pass:
    """What was seen of a forward pass."""

    calls: list[_Call] = field(default_factory=list)
    """How each block was called."""
    rests: list[Rest] = field(default_factory=list)
    """What each returned behind the stream."""
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    """The stream above the last block."""


class _Block:
    """A block of the base with its weights in memory, as it stands and as a silent copy."""

    def __init__(
        self, model: Model, index: int, module: nn.Module, call: _Call, device: torch.device
    ) -> None:
        memory, path = model.in_memory, f"{model.blocks_path}.{index}"
        self._module, self._call = module, call
        self._weights = {
            **dict(module.named_buffers()),
            **{
                name: memory.weights[f"{path}.{name}"].to(device)
                for name, _ in module.named_parameters(remove_duplicate=False)
            },
        }
        self._outputs = _Outputs(memory.anatomy.blocks[index])

    def _run(self, state: Tensor, other: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return what the block makes of a state, some of its weights replaced."""
        args, kwargs = self._call.on(state)
        return split(
            functional_call(self._module, {**self._weights, **(other or {})}, args, kwargs)
        )[0]

    def backward(self, gradient: Tensor) -> Tensor:
        """Return the loss's gradient by what came in, from that by what went out."""
        state = self._call.state.requires_grad_()
        with torch.enable_grad():
            made = self._run(state)
        return torch.autograd.grad(made, state, gradient)[0]

    def promise(self, state: Tensor, gradient: Tensor) -> float:
        """Say how far the first step of a silent copy would let the loss fall.

        Args:
            state: The stream where the copy would stand.
            gradient: That of the summed loss by it.
        """
        state, start = state.detach(), self._outputs.silenced(self._weights)
        leaves = [value.requires_grad_() for value in start.values()]
        with torch.enable_grad():
            made = self._run(state, start)
        own, others = (
            self._outputs.alone(
                torch.autograd.grad(
                    made[first::2],
                    leaves,
                    gradient[first::2],
                    retain_graph=first == 0,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
            for first in (0, 1)
        )
        fall = sum(float((a.sign() * b).sum()) for a, b in zip(own, others, strict=True))
        return fall / (len(gradient[1::2]) * (gradient.shape[1] - 1))


class _Outputs:
    """The tensors of a block that are silent in a new one, as transformers holds them."""

    def __init__(self, block: BlockAnatomy) -> None:
        self._sizes = block.sizes
        self._places: dict[str, list[tuple[Place, float]]] = defaultdict(list)
        for name, spec in block.block.items():
            if spec.silent is not None:
                self._places[block.places[name].suffix].append((block.places[name], spec.silent))

    def silenced(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of a block's weights that hold one, silent."""
        made = {name: weights[name].clone() for name in self._places}
        for name, tensor in made.items():
            for place, value in self._places[name]:
                place.view(tensor, self._sizes).fill_(value)
        return made

    def alone(self, slopes: Sequence[Tensor]) -> list[Tensor]:
        """Set to zero what does not belong to a silent tensor, in the order of ``silenced``."""
        kept = []
        for places, slope in zip(self._places.values(), slopes, strict=True):
            mask = torch.zeros_like(slope)
            for place, _ in places:
                place.view(mask, self._sizes).fill_(1)
            kept.append(slope * mask)
        return kept


@contextmanager
def _recorded(blocks: Iterable[nn.Module], seen: _Pass) -> Iterator[None]:
    """Keep what is seen as blocks run."""

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        call = _Call(args, kwargs)
        seen.calls.append(_Call(*call.on(call.state)))

    def leave(_: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        seen.final, rest = split(output)
        seen.rests.append(rest)

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(leave).remove)
        yield


def _gradient_on_top(
    module: Any,  # noqa: ANN401 (a transformers model)
    blocks: Sequence[nn.Module],
    seen: _Pass,
    tokens: Tensor,
) -> Tensor:
    """Return the gradient of the summed loss by the stream above the last block."""
    gradients = []
    for ids, row in zip(tokens.split(1), seen.final.split(1), strict=True):  # logits are large
        state = row.clone().requires_grad_()
        with torch.enable_grad(), skipped(zip(blocks, seen.rests, strict=True), state):
            logits = module(ids, use_cache=False).logits[0]
            loss = cross_entropy(logits[:-1].float(), ids[0, 1:], reduction="sum")
        gradients.append(torch.autograd.grad(loss, state)[0])
    return torch.cat(gradients)
