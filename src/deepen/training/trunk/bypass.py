"""Blocks that are passed by: the state above them is handed in instead of computed.

The module keeps its shape and its blocks their numbers, so that the code of any family runs on it
as it stands. Whatever else it computes below (embeddings, masks, rotations) it still computes; what
reaches the blocks above is compared with the whole module's before anything is trained on it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


class NotKeptError(Exception):
    """A trunk's states cannot be kept or used; the message says why, to follow a colon."""


class _Reached(Exception):  # noqa: N818 (no error: it ends a pass)
    """The top of the trunk has been reached; what lies above need not run."""


class Bypass:
    """The blocks below the lowest trained one, which can be run by themselves or passed by."""

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], below: int) -> None:
        """Change nothing yet.

        Args:
            module: The model, on its device.
            blocks: Its blocks from bottom to top.
            below: How many of them are passed by, at least one.
        """
        self._module, self._below, self._above = module, blocks[:below], blocks[below:]
        self._shapes: dict[int, Callable[[Tensor], Any]] = {}
        self._held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._state: Tensor | None = None

    def compute(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run the trunk alone, without gradients.

        Args:
            batch: What the module is called with.

        Returns:
            The state that leaves the trunk, [sequences, tokens, hidden].

        Raises:
            NotKeptError: There is no such state.
        """
        states: list[Tensor] = []

        def look(place: int, block: nn.Module, given: object, output: object) -> None:
            state, self._shapes[place] = _state_in(output)
            if place == len(self._below) - 1:
                states.append(state)
                raise _Reached

        hooks = [
            block.register_forward_hook(partial(look, place))
            for place, block in enumerate(self._below)
        ]
        try:
            with torch.no_grad():
                self._module(**batch)
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if not states:
            raise NotKeptError("its blocks do not hand on one state after another")
        if states[0].ndim != 3 or states[0].shape[:2] != batch["input_ids"].shape:
            raise NotKeptError("a state of its blocks is not one vector for each token")
        return states[0]

    def look(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Run the module as it is now, without gradients.

        Returns:
            The state that leaves the trunk, the loss, and every tensor that the blocks above the
            trunk are given, in order.
        """
        states: list[Tensor] = []
        seen: list[Tensor] = []

        def leave(block: nn.Module, given: object, output: object) -> None:
            states.append(_state_in(output)[0])

        def look(block: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
            seen.extend(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))

        hooks = [b.register_forward_pre_hook(look, with_kwargs=True) for b in self._above]
        hooks.append(self._below[-1].register_forward_hook(leave))
        try:
            with torch.no_grad():
                loss = self._module(**batch).loss
            return states[0], loss, seen
        finally:
            for hook in hooks:
                hook.remove()

    def switch_on(self) -> None:
        """Pass the blocks by from now on; each call of the module needs a state."""
        for place, block in enumerate(self._below):
            own = self._hand_in if place == len(self._below) - 1 else _pass_on
            # An instance's own forward hides its class's; what a block says of itself stays there.
            block.forward = partial(own, self._shapes[place])
            for held in _holders(block):
                self._held.append((held, dict(held)))
                held.clear()

    def switch_off(self) -> None:
        """Run the blocks again."""
        for block in self._below:
            block.__dict__.pop("forward", None)
        for held, contents in self._held:
            held.update(contents)
        self._held.clear()

    def free(self) -> None:
        """Forget what blocks hold that are passed by; they cannot be run again."""
        self._held.clear()

    def give(self, state: Tensor) -> None:
        """Set the state for the next call of the module, [sequences, tokens, hidden]."""
        self._state = state

    def _hand_in(self, shape: Callable[[Tensor], Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the state that was given, whatever comes in."""
        if self._state is None:
            raise RuntimeError("the trunk is passed by, and no state was given for this call")
        state, self._state = self._state, None
        return shape(state)


def _holders(block: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return where a block holds its weights."""
    return block._modules, block._parameters, block._buffers


def _pass_on(shape: Callable[[Tensor], Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Return what comes in."""
    return shape(args[0] if args else kwargs["hidden_states"])


def _state_in(output: object) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Find the state in what a block returns, and how to return another one likewise.

    Other tensors, such as attention's weights, are left out then: if a block above reads one, the
    proof shows it.

    Raises:
        NotKeptError: There is none.
    """
    if isinstance(output, Tensor):
        return output, _itself
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        rest = tree_map(lambda leaf: None if isinstance(leaf, Tensor) else leaf, output[1:])
        return output[0], partial(_before, rest)
    raise NotKeptError("its blocks do not hand on one state after another")


def _itself(state: Tensor) -> Tensor:
    """Return a state as it is."""
    return state


def _before(rest: tuple[Any, ...], state: Tensor) -> tuple[Any, ...]:
    """Return a state as the first of several."""
    return (state, *rest)
