"""A model's blocks on one text, each of which can be run again on any state.

One pass of the base remembers what every block is given beside the stream: masks, rotations, what
else its family makes from the tokens alone. A block then runs on another stream as it does in a
stack that has it twice; what the block below hands on beside the stream (GLM's choice of keys) it
is handed by the block that is below it now. What lies around the blocks, embeddings, last norm and
head, runs as the family's own code has it. Weights are fetched as blocks run
(``deepen.base.streamed``) and kept as far as there is room, since a scan runs each block often.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map

from deepen.base.memory import Weights
from deepen.base.model import Model
from deepen.base.streamed import run_explained, streamed
from deepen.common.errors import DeepenError
from deepen.planning.scoring.passes import Rest, skipped, split

_KEPT_BYTES = 2**31
"""Weights in float32 that stay in memory."""
_LOGITS = 2**27
"""Held at a time, 0.5 GB."""
_STREAM = "hidden_states"


class _Passed(Exception):  # noqa: N818 (no error: it ends a pass)
    """The top of the stack has been reached; the head need not run."""


class State(NamedTuple):
    """What one block hands on to the next."""

    stream: Tensor
    """The stream, ``[sequences, length, hidden]``."""
    beside: Rest = None
    """What the block returned behind it; nothing below the lowest one."""


class _Given:
    """What a block is given beside the stream."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], below: Rest) -> None:
        """Take the stream out of it.

        Args:
            args: Of the block.
            kwargs: Of the block.
            below: What the block below it returned behind the stream.
        """
        self._by_name = not args
        self._rest = args[1:], {key: value for key, value in kwargs.items() if key != _STREAM}
        self._places = {
            id(leaf): place for place, leaf in enumerate(tree_leaves(below)) if _is_tensor(leaf)
        }

    def older(self, handed: Container[int]) -> bool:
        """Whether it holds a tensor that a block further below returned."""
        leaves = [id(leaf) for leaf in tree_leaves(self._rest)]
        return any(leaf in handed and leaf not in self._places for leaf in leaves)

    def run(self, block: nn.Module, state: State) -> State:
        """Run a block on what another one handed on."""
        below = tree_leaves(state.beside)

        def instead(leaf: Any) -> Any:  # noqa: ANN401
            place = self._places.get(id(leaf))
            return leaf if place is None else below[place]

        args, kwargs = tree_map(instead, self._rest) if self._places else self._rest
        stream = state.stream.clone()  # some blocks add to it in place
        if self._by_name:
            return State(*split(block(**{_STREAM: stream}, **kwargs)))
        return State(*split(block(stream, *args, **kwargs)))


class Stack:
    """The blocks of a model on sequences of tokens."""

    def __init__(self, module: Any, blocks: Sequence[nn.Module], tokens: Tensor, name: str) -> None:  # noqa: ANN401
        """Run the blocks of the base once: from ``bottom``, the state below them, to ``top``.

        Args:
            module: The model, ready to run.
            blocks: Its blocks from bottom to top.
            tokens: Ids ``[sequences, length]``.
            name: What to call the model in an error.

        Raises:
            DeepenError: Blocks read more than the one below them hands on.
        """
        self._module, self._blocks, self._tokens, self._name = module, blocks, tokens, name
        self._given: list[_Given] = []
        self._outputs: list[Rest] = []
        self.runs = 0
        """How many blocks have run on all sequences."""
        self._learn()

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    def _learn(self) -> None:
        """Run the base up to the top of its blocks and remember what they are given."""
        handed: dict[int, Tensor] = {}  # tensors that blocks return behind the stream

        def enter(_: Any, args: Any, kwargs: Any) -> None:  # noqa: ANN401
            stream = args[0] if args else kwargs[_STREAM]
            if not self._given:
                self.bottom = self.top = State(stream.clone())
            elif not _same(stream, self.top.stream):
                raise self._cannot("have something between them")
            given = _Given(args, kwargs, self.top.beside)
            if given.older(handed):
                raise self._cannot("read what blocks further below return")
            self._given.append(given)

        def leave(_: Any, args: Any, output: Any) -> None:  # noqa: ANN401
            self.top = State(*split(output))
            leaves = filter(_is_tensor, tree_leaves(self.top.beside))
            handed.update({id(leaf): leaf for leaf in leaves})
            self._outputs.append(tree_map(_no_tensor, self.top.beside))
            if len(self._given) == len(self._blocks):
                raise _Passed

        with ExitStack() as hooks:
            for block in self._blocks:
                hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(leave).remove)
            try:
                self._module(self._tokens, use_cache=False)
            except _Passed:
                self.runs += len(self._blocks)
                return
        raise self._cannot("do not run one after another")

    def _cannot(self, why: str) -> DeepenError:
        """Make the error for a model that cannot be scanned."""
        return DeepenError(
            f"The blocks of {self._name} {why}, so that a span cannot be run again by itself; "
            f"grow it with --method repeat and measure with deepen evaluate."
        )

    def run(self, state: State, indices: Iterable[int]) -> State:
        """Run blocks one after another.

        Args:
            state: What the first of them is handed; it is left as it is.
            indices: The blocks.

        Returns:
            What the last of them hands on.
        """
        for index in indices:
            state = self._given[index].run(self._blocks[index], state)
            self.runs += 1
        return state

    def losses(self, state: State, given: int) -> list[float]:
        """Return the mean loss of every sequence, in nats per token.

        Args:
            state: What the block on top hands on.
            given: How many tokens at the beginning of a sequence are not predicted.
        """
        found: list[float] = []
        sequences, length = self._tokens.shape
        together = max(1, _LOGITS // (length * self._vocabulary))
        for start in range(0, sequences, together):
            rows = slice(start, start + together)
            ids = self._tokens[rows]
            with skipped(zip(self._blocks, self._outputs, strict=True), state.stream[rows]):
                logits = self._module(ids, use_cache=False).logits
            # One sequence at a time, because the loss copies its logits.
            found += [
                float(
                    cross_entropy(row[given - 1 : -1].float(), own[given:], reduction="none")
                    .double()
                    .mean()
                )
                for row, own in zip(logits, ids, strict=True)
            ]
        return found

    @property
    def _vocabulary(self) -> int:
        """Width of the logits."""
        return int(self._module.get_input_embeddings().weight.shape[0])


@contextmanager
def opened(model: Model, tokens: Tensor, device: torch.device) -> Iterator[Stack]:
    """Make a model ready to run on a text.

    Args:
        model: The model.
        tokens: Ids ``[sequences, length]``.
        device: Where to compute.

    Raises:
        DeepenError: transformers cannot run it, or it cannot be scanned.
    """
    with run_explained(model), streamed(model, device) as memory:
        blocks = list(memory.module.get_submodule(model.blocks_path).children())
        with memory.weights.replaced(_keeping(memory.weights)):
            yield Stack(memory.module, blocks, tokens.to(device), model.source.name)


def _keeping(weights: Weights) -> Callable[[str], Tensor]:
    """Return what hands out weights in float32, and keeps those that there is room for."""
    kept: dict[str, Tensor] = {}
    left = _KEPT_BYTES

    def fetch(name: str) -> Tensor:
        nonlocal left
        if name not in kept:
            tensor = weights.stored(name).to(torch.float32, copy=True)
            if tensor.nbytes > left:
                return tensor
            kept[name], left = tensor, left - tensor.nbytes
        return kept[name]

    return fetch


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two streams are one, also where they hold no numbers."""
    return one is other or torch.equal(one.nan_to_num(), other.nan_to_num())


def _is_tensor(leaf: object) -> bool:
    """Whether something is a tensor."""
    return isinstance(leaf, Tensor)


def _no_tensor(leaf: Any) -> Any:  # noqa: ANN401
    """Leave out a tensor: what lies above the blocks reads the stream alone."""
    return None if isinstance(leaf, Tensor) else leaf
