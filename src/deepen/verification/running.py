"""Run models: a grown one beside its base, and token by token, with and without a cache."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from deepen.base.model import Model
from deepen.base.streamed import logits, streamed
from deepen.base.text import PASSAGE, opening
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress
from deepen.records.verification import Check

_NEW = 4
"""How many tokens are generated: each costs a pass over all weights."""
_MOST_LOGITS = 2**31
_TOLERANCE = 1e-3
"""Relative to the largest logit; sums in another order differ by float32's rounding."""
_CACHES = ("past_key_values", "cache_params", "state")
"""What models call what they keep of earlier tokens."""


def run_both(
    base: Model, grown: Model, tokens: Tensor, device: torch.device, progress: Progress
) -> tuple[float, float, int]:
    """Compare two models' logits.

    Returns:
        The largest difference, KL(base ‖ grown) per token, and the number of tokens at which the
        base's own are not finite.
    """
    progress("running the base", 0.0)
    before = logits(base, tokens, device)
    progress("running the grown model", 0.5)
    after = logits(grown, tokens, device)
    progress("compared", 1.0)
    return compared(before, after)


def compared(before: Tensor, after: Tensor) -> tuple[float, float, int]:
    """Compare logits ``[batch, length, vocabulary]`` of base and grown model; see ``run_both``."""
    # What is no number in both is no difference.
    same = (after == before) | (after.isnan() & before.isnan())
    difference = float((after - before).masked_fill(same, 0.0).abs().max())
    unsound = int((~before.isfinite().all(-1)).sum())
    return difference, kl_nats_per_token(before, after), unsound


def kl_nats_per_token(base_logits: Tensor, grown_logits: Tensor) -> float:
    """Return the mean over tokens of KL(base ‖ grown) of logits ``[batch, length, vocabulary]``.

    Tokens at which the base itself computes NaN or Inf count as 0: nothing can be told there.
    """
    total = 0.0
    for base, grown in zip(base_logits, grown_logits, strict=True):  # one sequence at a time
        told = base.isfinite().all(-1)
        log_p, log_q = (of[told].double().log_softmax(-1) for of in (base, grown))
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total / base_logits.shape[:-1].numel()


def sample_tokens(base: Model, text: str | None, sequences: int, length: int) -> tuple[Tensor, str]:
    """Make token sequences that the model could meet.

    Returns:
        Ids ``[sequences, length]``, and what they are. Without a tokenizer beside the weights they
        are random.
    """
    shape = (sequences, min(length, base.positions or length))
    if not 0 < shape[0] * shape[1] * int(base.resolved["vocab_size"]) <= _MOST_LOGITS:
        raise DeepenError(
            f"{shape[0]} sequences of {shape[1]} tokens are none to run a model of this vocabulary "
            f"on: at most {_MOST_LOGITS:,} logits are held; give other numbers."
        )
    given = PASSAGE if text is None else text
    try:
        tokenizer = base.tokenizer()
        ids = tokenizer(given, add_special_tokens=False)["input_ids"]
        begins = opening(tokenizer)
    except Exception:  # whatever is wrong with a tokenizer, the proof can do without it
        ids = None
    if ids is None:
        generator = torch.Generator().manual_seed(0)
        vocabulary = int(base.resolved["vocab_size"])
        return torch.randint(vocabulary, shape, generator=generator), "random tokens (no tokenizer)"
    if not ids:
        raise DeepenError("The text to verify with holds no tokens; give another one.")
    # Each sequence starts elsewhere in the text, which is repeated if it is too short.
    starts = [index * len(ids) // sequences for index in range(sequences)]
    rows = [[*begins, *(ids[(start + i) % len(ids)] for i in range(shape[1]))] for start in starts]
    return torch.tensor(rows)[:, : shape[1]], "tokens of text"


def check_generates(base: Model, model: Model, tokens: Tensor, device: torch.device) -> Check:
    """Generate greedily with a cache, and hold every step to a pass over the whole sequence.

    Some families compute something else with a cache by design, or choose among near equals; a
    model of those differs as its base does.

    Args:
        base: The base.
        model: The model.
        tokens: Ids ``[batch, length]``; the prompt is the first sequence's, without its end, so
            that a model of so many positions can go on.
        device: Where to compute.
    """
    name = "generates with and without cache"
    try:
        difference = _cached_difference(model, tokens, device)
    except Exception as error:  # whatever transformers raises, the model cannot be used
        reason = " ".join(str(error).split())
        return Check(name=name, passed=False, detail=f"{type(error).__name__}: {reason}")
    detail = f"{_NEW} tokens, logits within {difference:.1g} of each other"
    if difference <= _TOLERANCE:
        return Check(name=name, passed=True, detail=detail)
    same = _cached_difference(base, tokens, device)
    detail += f"; the base's are within {same:.1g}"
    return Check(name=name, passed=same > _TOLERANCE, detail=detail)


def _cached_difference(model: Model, tokens: Tensor, device: torch.device) -> float:
    """Return how far logits with a cache are from those without, relative to the largest."""
    prompt = tokens[:1, : max(1, tokens.shape[1] - _NEW)]
    stepwise, generated = _generate(model, prompt, device)
    with streamed(model, device) as memory:
        whole = memory.module(generated.to(device), use_cache=False).logits.cpu()
    expected = whole[0, prompt.shape[1] - 1 :]
    return float((stepwise - expected).abs().max() / expected.abs().max())


def _generate(model: Model, tokens: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Generate greedily, one token at a time.

    Returns:
        The logits of every step ``[new, vocabulary]``, and prompt and new tokens but the last
        ``[1, length + new - 1]``.
    """
    steps = []
    with streamed(model, device) as memory:
        module: Any = memory.module
        accepted = signature(module.forward).parameters
        kept = next(name for name in _CACHES if name in accepted)
        given, sequence, cache = tokens, tokens, None
        for _ in range(_NEW):
            out = module(given.to(device), use_cache=True, **{kept: cache})
            cache = getattr(out, kept)
            steps.append(out.logits[0, -1].cpu())
            given = steps[-1].argmax().reshape(1, 1)
            sequence = torch.cat([sequence, given], 1)
    return torch.stack(steps), sequence[:, :-1]
