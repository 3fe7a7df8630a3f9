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

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from deepen.base.model import Model
from deepen.common.progress import Progress, silent
from deepen.planning.scoring.passes import (
    Rest,
    joined,
    loss_nats_per_token,
    running,
    skipped,
    split,
    watched,
)

_TOGETHER = 8  # blocks bypassed in one pass; more of them run more blocks below those bypassed
_LOGITS = 2**27  # held at a time, 0.5 GB


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
        found.append(turned(before[:, opening:], split(output)[0][:, opening:]))

    with running(model, device) as (module, blocks), watched(blocks, compare):
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
    rests: list[Rest] = []

    def keep(index: int, before: Tensor, output: Any) -> None:  # noqa: ANN401
        rests.append(split(output)[1])
        if index in starts:
            states[index] = before

    losses: list[float] = []
    with running(model, device) as (module, blocks):
        with watched(blocks, keep):
            base = loss_nats_per_token(module(tokens.to(device), use_cache=False).logits, tokens)
        # What a block returns beside the state, and a later one reads, has no rows to repeat.
        alone = not any(isinstance(part, Tensor) for rest in rests for part in rest or ())
        for start in starts:
            progress("scoring blocks", start / model.depth)
            group = blocks[start : start + together]
            below = zip(blocks[: start if alone else 0], rests, strict=False)
            state = states.pop(start)
            repeated = state.repeat(len(group), *[1] * (state.dim() - 1))
            with skipped(below, repeated), watched(group, partial(_bypass, len(tokens))):
                made = module(tokens.to(device).repeat(len(group), 1), use_cache=False).logits
            losses += [loss_nats_per_token(rows, tokens) for rows in made.split(len(tokens))]
    progress("scored blocks", 1.0)
    return [loss - base for loss in losses]


def _bypass(sequences: int, place: int, before: Tensor, output: Any) -> Any:  # noqa: ANN401
    """Return a block's input in the rows of the batch in which it is bypassed, else its output.

    Args:
        sequences: How many rows each of a group of blocks has.
        place: Which of the group it is.
        before: Its input.
        output: What it returns.
    """
    state, rest = split(output)
    rows = slice(place * sequences, (place + 1) * sequences)
    state = state.clone()
    state[rows] = before[rows]
    return joined(state, rest)
