"""Prove that a wider checkpoint computes what its base does."""

from pathlib import Path

from deepen.base.model import open_model
from deepen.base.streamed import logits
from deepen.common import device as devices
from deepen.common.progress import Progress, silent
from deepen.records.verification import Check
from deepen.verification.running import sample_tokens

_TOLERANCE = 1e-5
"""Relative to the largest logit: new neurons add zeros, but a longer sum may be taken in another
order."""


def prove_widened(
    base: str | Path,
    wider: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Check:
    """Run a base and what ``widen`` made of it, in float32, on the same four sequences.

    Args:
        base: The checkpoint that was widened: a folder or a hub id.
        wider: The wider checkpoint, untrained.
        revision: The base's branch, tag or commit on the hub.
        device: Where to run them.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: A checkpoint cannot be read.
    """
    before, after = open_model(base, revision), open_model(wider)
    tokens, how = sample_tokens(before, None, sequences=4, length=64)
    where = devices.choose(device)
    progress("running the base", 0.0)
    expected = logits(before, tokens, where)
    progress("running the wider model", 0.5)
    relative = float((logits(after, tokens, where) - expected).abs().max() / expected.abs().max())
    progress("compared", 1.0)
    return Check(
        name="computes what the base computes",
        passed=relative <= _TOLERANCE,
        detail=f"logits within {relative:.1g} of their largest on {tokens.numel()} {how}",
    )
