"""Numbers, and what records hold of scores and proofs, as a person reads them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

from deepen.comparison.statistics import SHARES
from deepen.records.growth import AlignmentProof, Scores

_NAMES: Mapping[str, str] = {
    "token_perplexity": "perplexity",
    "loss_nats_per_token": "loss, nats per token",
    "bits_per_byte": "bits per byte",
    "acc": "accuracy",
    "acc_norm": "accuracy, normalised",
    "mean acc": "mean accuracy",
    "word_perplexity": "word perplexity",
    "byte_perplexity": "byte perplexity",
}
_SHARES = {*SHARES, "mean acc"}
"""Metrics between 0 and 1 that are shown in per cent."""
_WRITTEN_OUT = 1e15
_MINUS, _THIN = "\N{MINUS SIGN}", "\N{THIN SPACE}"


Rest = ParamSpec("Rest")


def _finite(
    write: Callable[Concatenate[float, Rest], str],
) -> Callable[Concatenate[float, Rest], str]:
    """Let a function write what is no number, or infinite, as that."""

    @wraps(write)
    def written(value: float, /, *args: Rest.args, **kwargs: Rest.kwargs) -> str:
        if math.isfinite(value):
            return write(value, *args, **kwargs)
        return "NaN" if math.isnan(value) else "∞" if value > 0 else f"{_MINUS}∞"

    return written


def metric(name: str) -> str:
    """Write a metric's name."""
    return _NAMES.get(name, name.replace("_", " ").removesuffix(",none"))


def is_share(name: str) -> bool:
    """Whether a metric is shown in per cent."""
    return name in _SHARES


def score(name: str, value: float) -> str:
    """Write a score: shares in per cent with two decimals, as papers do."""
    return fixed(value * 100, 2) if is_share(name) else significant(value, 5)


def difference(name: str, value: float) -> str:
    """Write a difference of two scores with its sign."""
    text = fixed(value * 100, 2) if is_share(name) else fixed(value, 4)
    return text if text.startswith(_MINUS) else "+" + text


def interval(name: str, low: float | None, high: float | None) -> str:
    """Write a confidence interval; nothing if there is none."""
    if low is None or high is None:
        return ""
    return f"[{difference(name, low)}, {difference(name, high)}]"


@_finite
def fixed(value: float, decimals: int) -> str:
    """Write a number with that many decimals, thousands apart, and a real minus sign."""
    if abs(value) >= _WRITTEN_OUT:
        return f"{value:.4e}".replace("-", _MINUS)
    text = f"{value:,.{decimals}f}".replace(",", _THIN)
    if float(f"{value:.{decimals}f}") == 0:
        return text.removeprefix("-")
    return text.replace("-", _MINUS)


@_finite
def scientific(value: float) -> str:
    """Write a number with one digit and its power of ten: 4e−07."""
    return f"{value:.0e}".replace("-", _MINUS)


@_finite
def rate(value: float) -> str:
    """Write a learning rate: 2.5e−4."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", _MINUS)


@_finite
def significant(value: float, digits: int) -> str:
    """Write a number with about that many significant digits and at least one decimal."""
    if abs(value) >= _WRITTEN_OUT:
        return f"{value:.{digits - 1}e}".replace("-", _MINUS)
    whole = len(str(abs(int(value))))
    return fixed(value, max(1, digits - whole))


@_finite
def tick(value: float) -> str:
    """Write a tick's label: short, 12k and 1.5M for large numbers."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.6g}{name}".replace("-", _MINUS)
    return f"{value:.6g}".replace("-", _MINUS)


@_finite
def count(value: float) -> str:
    """Write a large number with three significant digits: 1.72B, 304M, 12.1k."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{_THIN}{name}"
    return f"{value:.3g}"


@_finite
def size(nbytes: float) -> str:
    """Write a number of bytes."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g}{_THIN}{name}"
    return f"{nbytes:.0f}{_THIN}B"


@_finite
def seconds(value: float) -> str:
    """Write a duration."""
    if value < 1:
        return f"{value * 1000:.3g}{_THIN}ms"
    if value < 120:
        return f"{value:.3g}{_THIN}s"
    minutes, hours = value / 60, value / 3600
    return f"{minutes:.3g}{_THIN}min" if hours < 2 else f"{hours:.3g}{_THIN}h"


@_finite
def share(value: float) -> str:
    """Write a share in per cent."""
    return f"{value * 100:.3g}{_THIN}%"


def blocks(indices: list[int]) -> str:
    """Write block indices with runs drawn together: ``4, 6–8``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def scored(scores: Scores) -> str:
    """Write what a placement was chosen by, from bottom to top."""
    values = "  ".join(f"{index}: {value:.4g}" for index, value in enumerate(scores.values))
    text = f" on {scores.tokens:,} tokens of {scores.text}" if scores.text else ""
    return f"{scores.by} of {scores.of}{text}\n{values}"


def proven(proofs: Sequence[AlignmentProof]) -> str:
    """Say in how many gaps a block was aligned, and how far aligning changed what it computes."""
    changes = [proof.relative_change for proof in proofs if proof.aligned]
    parts = [f"{len(changes)} of {len(proofs)} gaps"]
    if changes:
        parts.append(f"what an aligned block computes changes by {max(changes):.0e} at most")
    others = [
        f"{proof.below}|{proof.above} (would change by {proof.relative_change:.0e})"
        for proof in proofs
        if not proof.aligned
    ]
    return "; ".join([*parts, *([f"not aligned: {', '.join(others)}"] if others else [])])
