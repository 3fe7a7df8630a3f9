"""Choose an arm's learning rate: train at each of a grid, score on a text of its own, widen it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from deepen.common.errors import DivergedError
from deepen.common.files import write_whole
from deepen.common.progress import Progress
from deepen.comparison.arm import Arm
from deepen.comparison.making import make
from deepen.comparison.study import RateSearch, Study, listed
from deepen.evaluation.evaluate import evaluate
from deepen.training.run import train

Losses = Mapping[float, float | None]
"""Learning rate → loss in nats per token; ``None`` where training diverged."""

SEARCH = "search"
"""Name of the folder in which rates are tried."""


def searched(study: Study, arm: Arm) -> bool:
    """Whether an arm's learning rate is chosen by search."""
    return study.rates is not None and "learning_rate" not in arm.training


def search(study: Study, arm: Arm, progress: Progress) -> dict[float, float | None]:
    """Train an arm at one learning rate after the other, until the best is not at an end.

    What an interrupted search found is found again.

    Args:
        study: A settled study.
        arm: One of its arms.
        progress: Called with the stage and the finished share of it.

    Returns:
        Learning rate → mean loss over the search's texts.

    Raises:
        DeepenError: The base, the data or a text cannot be used.
    """
    assert study.rates is not None
    folder = Path(study.output) / SEARCH / arm.folder
    folder.mkdir(parents=True, exist_ok=True)
    model = make(study, arm, study.rates.seed, folder, progress).model
    losses: dict[float, float | None] = {}
    waiting = list(dict.fromkeys(arm.rates or study.rates.grid))
    while waiting:
        rate = waiting.pop(0)
        losses[rate] = _loss_at(study, study.rates, arm, model, rate, folder, progress)
        if not waiting and len(losses) < study.rates.most:
            further = beyond(losses)
            waiting = [] if further is None else [further]
    return losses


def beyond(losses: Losses) -> float | None:
    """Return the rate to try next if the best one is at an end; ``None`` if it is enclosed.

    The step is that between the best rate and its neighbour, or a factor of two.

    Args:
        losses: Learning rate → loss, at least one.
    """
    best, rates = best_rate(losses), sorted(losses)
    if best is None:
        return rates[0] / (rates[1] / rates[0] if len(rates) > 1 else 2.0)
    place = rates.index(best)
    if 0 < place < len(rates) - 1:
        return None
    if len(rates) == 1:
        return 2 * best
    neighbour = rates[1] if place == 0 else rates[-2]
    return best * best / neighbour


def best_rate(losses: Losses) -> float | None:
    """Return the rate with the lowest loss, the lower of equals; ``None`` if all diverged."""
    found = {rate: loss for rate, loss in sorted(losses.items()) if loss is not None}
    return min(found, key=lambda rate: found[rate], default=None)


def _loss_at(
    study: Study,
    asked: RateSearch,
    arm: Arm,
    model: Path | str,
    rate: float,
    folder: Path,
    progress: Progress,
) -> float | None:
    """Train at one rate and score; ``None`` if training diverged."""
    kept, run = folder / f"{rate:g}.txt", folder / f"{rate:g}"
    if kept.is_file():
        text = kept.read_text(encoding="utf-8")
        return None if text == "diverged" else float(text)
    try:
        train(study.recipe(arm, asked.seed, "cpt", model, run, rate), "cpt", progress=progress)
        found = evaluate(
            run / "model",
            perplexity=listed(asked.text),
            max_tokens=asked.max_tokens or study.evaluation.max_tokens,
            sequence_length=study.evaluation.sequence_length,
            batch_size=study.evaluation.batch_size,
            progress=progress,
        )
        loss: float | None = fmean(text.loss_nats_per_token for text in found.texts)
    except DivergedError:
        loss = None
    shutil.rmtree(run, ignore_errors=True)
    write_whole(kept, "diverged" if loss is None else repr(loss))
    return loss
