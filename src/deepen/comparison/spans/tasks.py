"""Tasks with the base and with the few best spans, example by example.

A task with every span would cost many times the scan; so the text chooses, and tasks only say what
they say of its choice. No example of theirs had a part in it, and all of them count.
"""

from collections.abc import Sequence
from typing import Any

import torch

from deepen.base.checkpoint import FolderSource
from deepen.base.memory import load_pretrained
from deepen.base.text import tokenizer_of
from deepen.common.progress import Progress
from deepen.common.quiet import quiet_transformers
from deepen.comparison.spans.grid import Span
from deepen.comparison.spans.verdict import Finding
from deepen.comparison.statistics import interval, mean_of
from deepen.evaluation import harness
from deepen.growth.grow import grow_model
from deepen.records.scan import SpanTask

FEW = 3
"""Spans that tasks are run with."""


def few_best(finding: Finding) -> list[Span]:
    """Return the chosen span, and the best others by the half that chooses."""
    chosen = Span(finding.choice.first, finding.choice.last)
    ordered = sorted(finding.spans, key=lambda span: span.choosing)
    others = [Span(span.first, span.last) for span in ordered]
    return [chosen, *(span for span in others if span != chosen)][:FEW]


def score_tasks(
    source: FolderSource,
    spans: Sequence[Span],
    times: int,
    tasks: harness.Tasks,
    settings: harness.TaskSettings,
    device: torch.device,
    progress: Progress,
) -> list[SpanTask]:
    """Run tasks in float32 with the base and with each of some spans repeated.

    Args:
        source: The base.
        spans: The spans.
        times: How often they are repeated.
        tasks: The tasks.
        settings: How they are run.
        device: Where to compute.
        progress: Called with the finished share.

    Raises:
        DeepenError: A task cannot be run.
    """
    tokenizer, found = tokenizer_of(source), list[SpanTask]()
    with quiet_transformers():
        module: Any = load_pretrained(source, torch.float32).to(device).eval()
        progress("running tasks", 0.0)
        base = harness.run_each(tasks, module, tokenizer, settings)
        for number, span in enumerate(spans, start=1):
            progress("running tasks", number / (1 + len(spans)))
            options = {"span": str(span), "times": times}
            grown = grow_model(module, method="repeat", options=options)
            scores = harness.run_each(tasks, grown, tokenizer, settings)
            found += [_compared(span, *pair) for pair in zip(scores, base, strict=True)]
    progress("ran tasks", 1.0)
    return found


def _compared(span: Span, ours: harness.ExampleScores, base: harness.ExampleScores) -> SpanTask:
    """Hold a metric with a span repeated to the base's, over the same examples."""
    pairs = zip(ours.values, base.values, strict=True)
    _, low, high = interval([one - other for one, other in pairs])
    return SpanTask(
        first=span.first,
        last=span.last,
        task=ours.task,
        metric=ours.metric,
        base=mean_of(base.values),
        value=mean_of(ours.values),
        low=low,
        high=high,
        examples=len(ours.values),
        higher_is_better=ours.higher_is_better,
    )
