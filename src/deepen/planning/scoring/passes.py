"""Forward passes of a base in which blocks are watched, bypassed or left out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepen.base.model import Model
from deepen.base.streamed import run_explained, streamed

Rest = tuple[Any, ...] | None
"""What a block returns behind the state; ``None`` if it returns the state alone."""


@contextmanager
def running(model: Model, device: torch.device) -> Iterator[tuple[Any, Sequence[nn.Module]]]:
    """Make a model ready to run, and hand out its blocks."""
    with run_explained(model), streamed(model, device) as memory:
        yield memory.module, list(memory.module.get_submodule(model.blocks_path).children())


def split(output: Any) -> tuple[Tensor, Rest]:  # noqa: ANN401 (what transformers' blocks return)
    """Return the state of what a block returns, and the rest."""
    return (output[0], output[1:]) if isinstance(output, tuple) else (output, None)


def joined(state: Tensor, rest: Rest) -> Any:  # noqa: ANN401
    """Undo ``split``."""
    return state if rest is None else (state, *rest)


@contextmanager
def watched(blocks: Sequence[nn.Module], see: Callable[[int, Tensor, Any], Any]) -> Iterator[None]:
    """Call a function with every block's place, input and output as it runs.

    Args:
        blocks: The blocks.
        see: What is to be called; what it returns, unless that is nothing, the block returns.
    """
    inputs: dict[int, Tensor] = {}

    def enter(index: int, _: Any, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        state = args[0] if args else kwargs["hidden_states"]
        inputs[index] = state.clone()  # some blocks add to it in place

    def leave(index: int, _: Any, args: Any, output: Any) -> Any:  # noqa: ANN401
        return see(index, inputs.pop(index), output)

    with ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.callback(
                block.register_forward_pre_hook(partial(enter, index), with_kwargs=True).remove
            )
            hooks.callback(block.register_forward_hook(partial(leave, index)).remove)
        yield


@contextmanager
def skipped(below: Iterable[tuple[nn.Module, Rest]], state: Tensor) -> Iterator[None]:
    """Let the lowest blocks, each with what it returns behind the state, return a known state."""
    with ExitStack() as undo:
        for block, rest in below:
            own = vars(block).get("forward")  # accelerate's, on blocks with parameters of their own
            vars(block)["forward"] = partial(_constant, joined(state, rest))
            undo.callback(_restore, block, own)
        yield


def _constant(value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Return a value, whatever is given."""
    return value


def _restore(block: nn.Module, forward: Any) -> None:  # noqa: ANN401
    """Undo what ``skipped`` did to a block."""
    del vars(block)["forward"]
    if forward is not None:
        vars(block)["forward"] = forward


def loss_nats_per_token(logits: Tensor, tokens: Tensor) -> float:
    """Return the mean loss of predicting each token but the first of every sequence.

    Args:
        logits: ``[sequences, length, vocabulary]``.
        tokens: Ids ``[sequences, length]``.
    """
    # One sequence at a time, because the loss copies its logits.
    losses = [
        float(cross_entropy(row[:-1].float(), ids[1:].to(row.device), reduction="sum"))
        for row, ids in zip(logits, tokens, strict=True)
    ]
    return sum(losses) / (tokens.numel() - len(tokens))
