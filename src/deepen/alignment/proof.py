"""Proof, for the checkpoint at hand, that an aligned block computes what it did.

What a family's table says of heads and gates decides what may be moved. A table that is wrong, or a
checkpoint that is other than its family, would be silently torn apart: a new block's outputs are
zero, so that no test of the grown model sees it. So the base runs once, on a few tokens, and each
lower block runs twice on what reaches it: as it is, and aligned. Of many experts only the first few
take part, so that no whole bank of them is ever in memory; the others add nothing in either run.
"""

import inspect
import warnings
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepen.alignment.match import Matcher, Pair
from deepen.base.memory import InMemory
from deepen.base.model import Model
from deepen.base.streamed import run_explained, streamed
from deepen.common.progress import Progress, silent
from deepen.records.growth import AlignmentProof

LIMIT = 1e-3
"""Largest relative change that rounding may make; a torn block changes by about its own size."""
_TOKENS = 16
_EXPERTS = 8


def relative_changes(
    model: Model,
    matchers: Mapping[Pair, Matcher],
    device: torch.device,
    progress: Progress = silent,
) -> dict[Pair, float]:
    """Measure how far aligned lower blocks compute something else than the blocks themselves.

    Args:
        model: The model.
        matchers: Lower and upper block → how the lower one is aligned, exactly.
        device: Where to compute.
        progress: Called with the finished share.

    Returns:
        For each pair ‖aligned(x) - block(x)‖ / ‖block(x) - x‖ of the states x of a few tokens; 0
        where both add nothing.
    """
    by_block: dict[int, list[Pair]] = defaultdict(list)
    for pair in matchers:
        by_block[pair[0]].append(pair)
    changes: dict[Pair, float] = {}
    if not matchers:
        return changes
    progress("proving", 0.0)
    with run_explained(model), streamed(model, device) as memory, ExitStack() as hooks:
        blocks: Any = memory.module.get_submodule(model.blocks_path)
        for index, pairs in by_block.items():
            own = {pair: matchers[pair] for pair in pairs}
            twice = _Twice(model, memory, index, own, changes, last=index == max(by_block))
            hooks.callback(twice.watch(blocks[index]))
        args, kwargs = _inputs(model, memory, device)
        with suppress(_Enough), memory.weights.replaced(_FewExperts(model, memory)):
            memory.module(*args, **kwargs, use_cache=False)
    progress("proving", 1.0)
    return changes


def _inputs(
    model: Model, memory: InMemory, device: torch.device
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return a few random tokens as a model reads them, as embeddings where it takes those.

    The table of embeddings can be the largest tensor of all, and few of its rows are needed.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(int(model.resolved["vocab_size"]), (1, _TOKENS), generator=generator)
    takes_embeddings = "inputs_embeds" in inspect.signature(memory.module.forward).parameters
    if model.family.embeds_apart or not takes_embeddings:
        return (tokens.to(device),), {}
    embeddings = model.source.load(model.family.embeddings)[tokens]
    return (), {"inputs_embeds": embeddings.to(device, torch.float32)}


def proven(
    model: Model,
    matchers: Mapping[Pair, Matcher],
    device: torch.device,
    progress: Progress = silent,
) -> tuple[dict[Pair, Matcher], list[AlignmentProof]]:
    """Keep the alignments that leave the lower block's function as it is; warn of the others.

    Returns:
        The alignments that may be used, and what was found of each.
    """
    changes = relative_changes(model, matchers, device, progress)
    sound = {pair: matcher for pair, matcher in matchers.items() if changes[pair] <= LIMIT}
    for below, above in sorted(matchers.keys() - sound.keys()):
        warnings.warn(
            f"Block {below}, aligned to block {above}, would compute something else (relative "
            f"change {changes[below, above]:.2g}), so nothing is aligned there.",
            stacklevel=2,
        )
    proofs = [
        AlignmentProof(below=pair[0], above=pair[1], relative_change=change, aligned=pair in sound)
        for pair, change in changes.items()
    ]
    return sound, proofs


class _Enough(Exception):  # noqa: N818 (it is no error)
    """Every block has run that was to be looked at."""


class _Twice:
    """Runs a block once aligned, just before it runs as it is."""

    def __init__(
        self,
        model: Model,
        memory: InMemory,
        index: int,
        matchers: Mapping[Pair, Matcher],
        changes: dict[Pair, float],
        *,
        last: bool,
    ) -> None:
        self._model, self._memory, self._index, self._matchers = model, memory, index, matchers
        self._changes, self._last, self._inside = changes, last, False
        self._aligned: dict[Pair, Tensor] = {}
        self._state = torch.empty(0)

    def watch(self, block: nn.Module) -> Any:  # noqa: ANN401 (a function that ends it)
        """Look on until the returned function is called."""
        before = block.register_forward_pre_hook(self._before, with_kwargs=True)
        after = block.register_forward_hook(self._after)

        def end() -> None:
            before.remove()
            after.remove()

        return end

    def _before(self, block: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        """Run the aligned block; first, so that whatever blocks share is left as it should be."""
        if self._inside:
            return
        self._inside = True
        self._state = (args[0] if args else kwargs["hidden_states"]).clone()
        for pair, matcher in self._matchers.items():
            weights = _AlignedWeights(self._model, self._memory, self._index, matcher)
            with self._memory.weights.replaced(weights):
                self._aligned[pair] = _state(block(*_cloned(args), **_cloned(kwargs)))
        self._inside = False

    def _after(self, block: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        """Compare with what the block itself makes of the same state."""
        if self._inside:
            return
        made = _state(output)
        added = float((made - self._state).double().norm())
        for pair, aligned in self._aligned.items():
            change = float((aligned - made).double().norm())
            self._changes[pair] = change / added if added else change
        if self._last:
            raise _Enough


def _state(output: Any) -> Tensor:  # noqa: ANN401 (what transformers' blocks return)
    """Return the residual stream of what a block returns."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def _cloned(inputs: Any) -> Any:  # noqa: ANN401 (arguments of a block)
    """Copy the tensors among a block's arguments, which some blocks change in place."""
    if isinstance(inputs, Mapping):
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return tuple(v.clone() if isinstance(v, Tensor) else v for v in inputs)


class _FewExperts:
    """Banks of experts as the model in memory has them, only the first few of them filled."""

    def __init__(self, model: Model, memory: InMemory) -> None:
        self._model, self._memory = model, memory

    def __call__(self, name: str) -> Tensor | None:
        place = self._memory.anatomy.family.split(name)
        if place is None:
            return None
        index, suffix = place
        kind, names = self._memory.anatomy.blocks[index], self._model.anatomy.blocks[index].names
        if len(kind.experts) <= _EXPERTS or not kind.stored[suffix].bank:
            return None
        block = self._model.block(index, torch.device("cpu"))
        bank = _untouched(self._memory.shapes[name])
        for logical, where in kind.places.items():
            if where.suffix == suffix and where.expert is not None and where.expert < _EXPERTS:
                where.write(block[names[kind.block[logical].key]], bank, kind.sizes)
        return bank


class _AlignedWeights:
    """The tensors of an aligned block as the model in memory has them, each made when asked for."""

    def __init__(self, model: Model, memory: InMemory, index: int, matcher: Matcher) -> None:
        self._memory, self._index, self._matcher = memory, index, matcher
        self._names = model.anatomy.blocks[index].names
        self._kind = memory.anatomy.blocks[index]
        self._part: tuple[str | None, dict[str, Tensor]] | None = None

    def __call__(self, name: str) -> Tensor | None:
        place = self._memory.anatomy.family.split(name)
        if place is None or place[0] != self._index:
            return None
        tensor: Tensor | None = None
        for logical, where in self._kind.places.items():
            if where.suffix != place[1]:
                continue
            if tensor is None and not where.is_whole:
                tensor = _untouched(self._memory.shapes[name])
            if where.expert is not None and self._is_left_out(where.expert):
                continue
            part = self._logical(self._names[self._kind.block[logical].key]).float().cpu()
            if tensor is None:
                return part.contiguous()
            where.write(part, tensor, self._kind.sizes)
        return tensor

    def _is_left_out(self, expert: int) -> bool:
        """Whether the expert that has come here is none of the few that take part."""
        experts = self._matcher.experts
        return len(experts) > _EXPERTS and experts[expert] >= _EXPERTS

    def _logical(self, name: str) -> Tensor:
        """Return a logical tensor of the base's layout, aligned; the latest part is kept."""
        spec = self._matcher.anatomy.block[name]
        for part in (spec.unit, None):
            if self._part is None or self._part[0] != part:
                self._part = None  # free it before the next one is made
                self._part = part, dict(self._matcher.aligned_part(part))
            if name in self._part[1]:
                return self._part[1][name]
        return self._matcher.aligned_rest(name)


def _untouched(shape: tuple[int, ...]) -> Tensor:
    """Return zeros whose pages take memory only once they are written, unlike torch's."""
    return torch.from_numpy(np.zeros(shape, np.float32))
