"""What pairs of blocks compute on a text: how alike their neurons, heads and outputs are.

One streamed pass over the model. Only the activations of lower blocks whose upper partner has not
run yet are held.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepen.alignment.match import Pair, Similarity
from deepen.base.anatomy import BlockAnatomy, Role
from deepen.base.memory import InMemory
from deepen.base.model import Model
from deepen.base.streamed import streamed
from deepen.common.bounded import read_text
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, silent
from deepen.transport.correlation import Correlation, HeadCorrelation, StreamingCka

_BATCH = 4
# Tokens of calibration: enough for correlations of a few thousandths.
_SEQUENCES, _LENGTH = 64, 256


@dataclass(frozen=True)
class Likeness:
    """How alike two blocks are in what they compute."""

    similarity: Similarity
    """Of their neurons and of their heads."""
    cka: float
    """Linear CKA of what the two blocks add to the residual stream, 0 to 1."""


def read_tokens(
    model: Model, text: Path, sequences: int = _SEQUENCES, length: int = _LENGTH
) -> Tensor:
    """Cut the beginning of a text into sequences ``[sequences, length]`` for calibration.

    Raises:
        DeepenError: The text cannot be read or is too short, or the model has no tokenizer.
    """
    tokenizer = model.tokenizer()
    ids = tokenizer(read_text(text), add_special_tokens=False)["input_ids"]
    length = min(length, model.positions or length)
    sequences = min(sequences, len(ids) // length)
    if not sequences:
        raise DeepenError(
            f"The calibration text {str(text)!r} has {len(ids)} tokens, fewer than one sequence of "
            f"{length}; give a longer one."
        )
    return torch.tensor(ids[: sequences * length]).view(sequences, length)


def compare_blocks(
    model: Model,
    pairs: Sequence[Pair],
    tokens: Tensor,
    device: torch.device,
    progress: Progress = silent,
) -> dict[Pair, Likeness]:
    """Run a text through the model and compare blocks pair by pair.

    Neurons are compared by the correlation of what goes into the down projection, heads by that of
    what they write. FFNs that transformers computes as one with others (banks of experts) are left
    out.

    Args:
        model: The model that both blocks belong to.
        pairs: Which blocks to compare; the lower one first.
        tokens: Ids ``[sequences, length]``.
        device: Where to compute.
        progress: Called with the finished share.
    """
    with streamed(model, device) as memory, ExitStack() as hooks:
        watched = {pair: _Watched(model, memory, pair) for pair in dict.fromkeys(pairs)}
        for pair in watched.values():
            hooks.enter_context(pair.hooked())
        batches = tokens.split(_BATCH)
        for done, batch in enumerate(batches):
            progress("calibrating", done / len(batches))
            memory.module(batch.to(device), use_cache=False)
        progress("calibrating", 1.0)
        return {pair: seen.result(model, device) for pair, seen in watched.items()}


def similarities(
    model: Model, pairs: Sequence[Pair], text: Path, device: torch.device, progress: Progress
) -> dict[Pair, Similarity]:
    """Compare blocks pair by pair on the beginning of a text; see ``compare_blocks``.

    Raises:
        DeepenError: The text cannot be read or is too short, or the model has no tokenizer.
    """
    tokens = read_tokens(model, text)
    found = compare_blocks(model, pairs, tokens, device, progress)
    return {pair: likeness.similarity for pair, likeness in found.items()}


class _Watched:
    """Follows one pair of blocks while the model runs."""

    def __init__(self, model: Model, memory: InMemory, pair: Pair) -> None:
        self._pair, self._anatomy = pair, model.anatomy.blocks[pair[0]]
        kinds = [memory.anatomy.blocks[index] for index in pair]
        prefix = memory.anatomy.family.block_prefix
        self._blocks = [memory.module.get_submodule(f"{prefix}{index}") for index in pair]
        self._neurons = {
            unit: Correlation()
            for unit in self._anatomy.units
            if all(_path(kind, "ffn_output", unit) for kind in kinds)
        }
        heads = self._anatomy.heads
        ordinary = heads and all(_path(kind, "attention_output") for kind in kinds)
        self._heads = HeadCorrelation(heads.query) if heads and ordinary else None
        self._cka, self._kinds = StreamingCka(), kinds
        self._held: dict[str, Tensor] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch the two blocks for as long as this lasts."""
        handles = []
        for side, (block, kind) in enumerate(zip(self._blocks, self._kinds, strict=True)):
            for unit, correlation in self._neurons.items():
                module = block.get_submodule(str(_path(kind, "ffn_output", unit)))
                handles.append(self._watch(module, side, unit, correlation.update))
            if self._heads:
                module = block.get_submodule(str(_path(kind, "attention_output")))
                handles.append(self._watch(module, side, "heads", self._heads.update))
            handles.append(self._watch_output(block, side))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(
        self, module: nn.Module, side: int, what: str, update: Callable[[Tensor, Tensor], None]
    ) -> Any:  # noqa: ANN401 (torch's handle)
        """Compare the inputs of a module in the two blocks."""
        return module.register_forward_pre_hook(
            lambda _module, inputs: self._meet(side, what, inputs[0], update)
        )

    def _watch_output(self, block: nn.Module, side: int) -> Any:  # noqa: ANN401
        """Compare what the two blocks add to the residual stream."""

        def hook(_module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            before = inputs[0] if inputs else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            self._meet(side, "output", after - before, self._cka.update)

        return block.register_forward_hook(hook, with_kwargs=True)

    def _meet(
        self, side: int, what: str, seen: Tensor, update: Callable[[Tensor, Tensor], None]
    ) -> None:
        """Hold what the lower block does until the upper one has done the same."""
        if side == 0:
            self._held[what] = seen.detach()
        else:
            update(self._held.pop(what), seen.detach())

    def result(self, model: Model, device: torch.device) -> Likeness:
        """Return what was found."""
        heads = None
        if self._heads and (name := self._anatomy.name("attention_output")):
            outputs = [model.block(index, device)[name] for index in self._pair]
            heads = self._heads.value(*outputs)
        neurons = {unit: correlation.value() for unit, correlation in self._neurons.items()}
        return Likeness(Similarity(neurons, heads), self._cka.value())


def _path(kind: BlockAnatomy, role: Role, unit: str = "") -> str | None:
    """Return the path inside a block of the linear layer with a role; ``None`` if it is none."""
    name = kind.name(role, unit)
    place = kind.places[name] if name else None
    whole = place is not None and not place.stored.bank and place.suffix.endswith(".weight")
    return place.suffix.removesuffix(".weight") if place and whole else None
