"""What a scan concludes: the span that one half of a text chooses, and whether it helps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deepen.comparison.spans.chance import Luck, luck
from deepen.comparison.spans.grid import Span
from deepen.comparison.statistics import interval, mean_of
from deepen.records.scan import Choice, SpanScore, Verdict

LUCKY = 0.05
"""Chance of luck up to which a span is not taken for lucky."""


class Finding(NamedTuple):
    """What the losses of a scan say."""

    spans: list[SpanScore]
    """Every span, in the order of its losses."""
    choice: Choice
    """The chosen one."""
    luck: Luck
    """How chances were counted."""
    verdict: Verdict
    """Whether it helps."""
    sentence: str
    """The verdict in words."""


def conclude(
    base: Sequence[float], losses: Mapping[Span, Sequence[float]], times: int, seed: int
) -> Finding:
    """Choose a span on one half of the sequences, and ask the other half.

    Args:
        base: The base's loss of each sequence, in nats per token, all finite.
        losses: The same with each span repeated.
        times: How often.
        seed: Of the signs that are drawn.
    """
    differences = {
        span: [ours - theirs for ours, theirs in zip(found, base, strict=True)]
        for span, found in losses.items()
    }
    halves = np.array([own[::2] for own in differences.values()], dtype=np.float64).T
    lucky = luck(halves, seed)
    spans = [
        SpanScore(
            first=span.first,
            last=span.last,
            choosing=mean_of(own[::2]),
            confirming=mean_of(own[1::2]),
            chance=chance,
            losses=list(losses[span]),
        )
        for (span, own), chance in zip(differences.items(), lucky.chances, strict=True)
    ]
    best = _best(spans)
    mean, low, high = interval(differences[Span(best.first, best.last)][1::2])
    choice = Choice(
        first=best.first,
        last=best.last,
        choosing=best.choosing,
        chance=best.chance,
        confirming=mean,
        low=low,
        high=high,
    )
    verdict = _verdict(choice)
    return Finding(spans, choice, lucky, verdict, _sentence(choice, verdict, len(spans), times))


def _best(spans: Sequence[SpanScore]) -> SpanScore:
    """Choose by the half that chooses: the least loss of the spans that are not taken for luck.

    If all are, the least loss of all.
    """
    sure = [span for span in spans if span.choosing < 0 and span.chance <= LUCKY]
    finite = [span for span in spans if np.isfinite(span.choosing)]
    return min(sure or finite or spans, key=lambda span: span.choosing)


def _verdict(choice: Choice) -> Verdict:
    """Say whether the chosen span helps."""
    if not choice.choosing < 0:
        return "none"
    confirmed = choice.high is not None and choice.high < 0
    return "helps" if confirmed and choice.chance <= LUCKY else "unproven"


def _sentence(choice: Choice, verdict: Verdict, tried: int, times: int) -> str:
    """Write the verdict."""
    span = f"{choice.first}-{choice.last}"
    name = f"span {span}, repeated {'once' if times == 1 else f'{times} times'},"
    between = "" if choice.low is None else f" ({choice.low:+.4f} … {choice.high:+.4f})"
    held = f"{choice.confirming:+.4f} nats per token{between}"
    of = f"the best of {tried}" if tried > 1 else "the only one"
    if verdict == "none":
        return (
            f"No span helps on this text: {of}, {span}, changes the loss by "
            f"{choice.choosing:+.4f} on the half that chose it and by {held} on the other."
        )
    luck = f"a best of {tried} is that good by luck with a chance of {choice.chance:.2g}"
    if verdict == "helps":
        return (
            f"{name[0].upper()}{name[1:]} lowers the loss on this text: it changes by {held} on "
            f"the half that did not choose it; on the half that did, {luck}."
        )
    return (
        f"No span is shown to help on this text: {span}, {of}, changes the loss by "
        f"{choice.choosing:+.4f} on the half that chose it, where {luck}, and by {held} on the "
        f"other."
    )
