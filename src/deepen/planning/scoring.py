"""What each block of a model does for a text: the scores that placements by measurement sort.

``influence``  1 - the mean cosine of a block's input and output, over all tokens: how far the block
               turns the stream. One pass. Block influence, arXiv 2403.03853, equation 1.
``importance`` loss of the model with the block bypassed minus the model's own, in nats per token.
               arXiv 2510.10071 grows where that is least on general text. The states below a
               bypassed block are the model's own, so only the blocks above it run again: about
               L²/2 blocks instead of L². Several blocks are bypassed in one pass, each in its own
               rows of the batch, so that a model that is streamed is not fetched once for each.

No more of the model than a tensor is in memory at a time (``deepen.base.streamed``).
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from deepen.base.model import Model
from deepen.base.registry.texts import text_file
from deepen.base.streamed import run_explained, streamed
from deepen.base.text import PASSAGE, opening
from deepen.common.bounded import check_regular
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.common.progress import Progress, silent
from deepen.records.growth import Scores

_LEAST, _MOST, _LONGEST = 32, 1024, 256
"""Tokens of calibration, at least and at most; and of one sequence."""
_CHARACTERS = 2**16  # hold that many tokens in any language
_TOGETHER = 8  # blocks bypassed in one pass; more of them run more blocks below those bypassed
_LOGITS = 2**27  # held at a time, 0.5 GB
_DECIMALS = 6


@dataclass(frozen=True)
class Calibration:
    """The text that blocks are scored on."""

    name: str
    """What to call it."""
    sha256: str
    """Hash of all of it."""
    tokens: Tensor
    """Ids ``[sequences, length]``, from its beginning on, each behind the opening."""
    opening: int
    """How many tokens the tokenizer puts in front of every text."""


def read_calibration(model: Model, file: str | None) -> Calibration:
    """Read the beginning of a text as a model's tokens.

    Args:
        model: The model.
        file: A text in UTF-8, or ``registry:TEXT/PART``; by default the passage that ``verify``
            reads.

    Raises:
        DeepenError: It cannot be read, is empty, is no text, or is too short; or the model has no
            tokenizer.
    """
    tokenizer = model.tokenizer()
    name, sha256, content = ("passage", _sha256(PASSAGE), PASSAGE) if file is None else _read(file)
    ids = tokenizer(content, add_special_tokens=False)["input_ids"][:_MOST]
    if len(ids) < _LEAST:
        raise DeepenError(
            f"The calibration text {name!r} has {len(ids)} tokens, and scores need {_LEAST} at "
            f"least; give a longer one."
        )
    begins = opening(tokenizer)
    longest = min(_LONGEST, model.positions or _LONGEST) - len(begins)
    sequences = math.ceil(len(ids) / longest)
    length = len(ids) // sequences
    own = torch.tensor(ids[: sequences * length]).view(sequences, -1)
    front = torch.tensor(begins, dtype=own.dtype).expand(sequences, -1)
    return Calibration(name, sha256, torch.cat([front, own], 1), len(begins))


def _read(file: str) -> tuple[str, str, str]:
    """Return a file's name, its SHA-256 and its beginning."""
    path = text_file(file)
    check_regular(path)
    try:
        sha256 = digest_of(path)
        with path.open(encoding="utf-8") as text:
            content = text.read(_CHARACTERS)
    except UnicodeDecodeError:
        raise DeepenError(
            f"The calibration text {file!r} is no text in UTF-8; give one that is."
        ) from None
    except OSError as error:
        raise DeepenError(
            f"The calibration text {file!r} cannot be read ({error.strerror})."
        ) from None
    if not content.strip():
        raise DeepenError(f"The calibration text {file!r} is empty; give one with words.")
    return path.name, sha256, content


def _sha256(text: str) -> str:
    """Return the hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def score_blocks(
    model: Model, by: str, file: str | None, device: torch.device, progress: Progress = silent
) -> Scores:
    """Score every block of a model on a text.

    Args:
        model: The model.
        by: ``importance`` or ``influence``.
        file: The text; see ``read_calibration``.
        device: Where to compute.
        progress: Called with the finished share.

    Raises:
        DeepenError: The text or the model cannot be used, or the model computes no numbers.
    """
    calibration = read_calibration(model, file)
    tokens, begins = calibration.tokens, calibration.opening
    if by == "importance":
        values = importances(model, tokens, device, progress)
    else:
        values = influences(model, tokens, device, progress, opening=begins)
    if not all(map(math.isfinite, values)):
        raise DeepenError(
            f"{model.source.name} computes no numbers on the calibration text, so nothing says "
            f"which of its blocks matter; choose another placement."
        )
    return Scores(
        by=by,
        of="blocks",
        values=[round(value, _DECIMALS) for value in values],
        text=calibration.name,
        text_sha256=calibration.sha256,
        tokens=tokens.numel() - begins * len(tokens),
    )


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


def turned(before: Tensor, after: Tensor) -> float:
    """Return 1 - the mean cosine of two states ``[…, hidden]`` of the stream, over all tokens."""
    return 1 - float(cosine_similarity(before.double(), after.double(), dim=-1).mean())


def influences(
    model: Model,
    tokens: Tensor,
    device: torch.device,
    progress: Progress = silent,
    *,
    opening: int = 0,
) -> list[float]:
    """Return the influence of every block.

    Args:
        model: The model.
        tokens: Ids ``[sequences, length]``.
        device: Where to compute.
        progress: Called with the finished share.
        opening: How many tokens at the beginning of a sequence do not count: a stream that
            gathers in BOS says nothing of a text.

    Raises:
        DeepenError: transformers cannot run the model.
    """
    found: list[float] = []

    def compare(index: int, before: Tensor, output: Any) -> None:  # noqa: ANN401
        progress("scoring blocks", index / model.depth)
        found.append(turned(before[:, opening:], _split(output)[0][:, opening:]))

    with _running(model, device) as (module, blocks), _watched(blocks, compare):
        module(tokens.to(device), use_cache=False)
    progress("scored blocks", 1.0)
    return found


def importances(
    model: Model, tokens: Tensor, device: torch.device, progress: Progress = silent
) -> list[float]:
    """Return the importance of every block, in nats per token.

    Args:
        model: The model.
        tokens: Ids ``[sequences, length]``.
        device: Where to compute.
        progress: Called with the finished share.

    Raises:
        DeepenError: transformers cannot run the model.
    """
    logits = tokens.numel() * int(model.resolved["vocab_size"])
    together = max(1, min(_TOGETHER, _LOGITS // logits))
    starts = range(0, model.depth, together)
    states: dict[int, Tensor] = {}
    rests: list[_Rest] = []

    def keep(index: int, before: Tensor, output: Any) -> None:  # noqa: ANN401
        rests.append(_split(output)[1])
        if index in starts:
            states[index] = before

    losses: list[float] = []
    with _running(model, device) as (module, blocks):
        with _watched(blocks, keep):
            base = loss_nats_per_token(module(tokens.to(device), use_cache=False).logits, tokens)
        # What a block returns beside the state, and a later one reads, has no rows to repeat.
        alone = not any(isinstance(part, Tensor) for rest in rests for part in rest or ())
        for start in starts:
            progress("scoring blocks", start / model.depth)
            group = blocks[start : start + together]
            below = zip(blocks[: start if alone else 0], rests, strict=False)
            state = states.pop(start)
            repeated = state.repeat(len(group), *[1] * (state.dim() - 1))
            with _skipped(below, repeated), _watched(group, partial(_bypass, len(tokens))):
                made = module(tokens.to(device).repeat(len(group), 1), use_cache=False).logits
            losses += [loss_nats_per_token(rows, tokens) for rows in made.split(len(tokens))]
    progress("scored blocks", 1.0)
    return [loss - base for loss in losses]


_Rest = tuple[Any, ...] | None
"""What a block returns behind the state; ``None`` if it returns the state alone."""


@contextmanager
def _running(model: Model, device: torch.device) -> Iterator[tuple[Any, Sequence[nn.Module]]]:
    """Make a model ready to run, and hand out its blocks."""
    with run_explained(model), streamed(model, device) as memory:
        yield memory.module, list(memory.module.get_submodule(model.blocks_path).children())


def _split(output: Any) -> tuple[Tensor, _Rest]:  # noqa: ANN401 (what transformers' blocks return)
    """Return the state of what a block returns, and the rest."""
    return (output[0], output[1:]) if isinstance(output, tuple) else (output, None)


def _joined(state: Tensor, rest: _Rest) -> Any:  # noqa: ANN401
    """Undo ``_split``."""
    return state if rest is None else (state, *rest)


@contextmanager
def _watched(blocks: Sequence[nn.Module], see: Callable[[int, Tensor, Any], Any]) -> Iterator[None]:
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


def _bypass(sequences: int, place: int, before: Tensor, output: Any) -> Any:  # noqa: ANN401
    """Return a block's input in the rows of the batch in which it is bypassed, else its output.

    Args:
        sequences: How many rows each of a group of blocks has.
        place: Which of the group it is.
        before: Its input.
        output: What it returns.
    """
    state, rest = _split(output)
    rows = slice(place * sequences, (place + 1) * sequences)
    state = state.clone()
    state[rows] = before[rows]
    return _joined(state, rest)


@contextmanager
def _skipped(below: Iterable[tuple[nn.Module, _Rest]], state: Tensor) -> Iterator[None]:
    """Let the lowest blocks, each with what it returns behind the state, return a known state."""
    with ExitStack() as undo:
        for block, rest in below:
            own = vars(block).get("forward")  # accelerate's, on blocks with parameters of their own
            vars(block)["forward"] = partial(_constant, _joined(state, rest))
            undo.callback(_restore, block, own)
        yield


def _constant(value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Return a value, whatever is given."""
    return value


def _restore(block: nn.Module, forward: Any) -> None:  # noqa: ANN401
    """Undo what ``_skipped`` did to a block."""
    del vars(block)["forward"]
    if forward is not None:
        vars(block)["forward"] = forward
