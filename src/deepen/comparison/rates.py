"""Choose an arm's learning rate: train at each of a grid, score on a text of its own, widen it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from deepen.common.bounded import read_text
from deepen.common.errors import DeepenError, DivergedError
from deepen.common.files import make_folders, write_whole
from deepen.common.progress import Progress
from deepen.comparison.arm import Arm
from deepen.comparison.arms import trunk_below
from deepen.comparison.making import REMEDY, make
from deepen.comparison.study import RateSearch, Study, listed
from deepen.evaluation.evaluate import evaluate
from deepen.training.recipe import Recipe, Stage
from deepen.training.run import train

Losses = Mapping[float, float | None]
"""Learning rate → loss in nats per token; ``None`` where training diverged."""

_DIVERGED = "diverged"
SEARCH = "search"
"""Name of the folder in which rates are tried."""


def searched(study: Study, arm: Arm, stage: Stage) -> bool:
    """Whether an arm's learning rate is chosen by search."""
    own = arm.training if stage == "cpt" else arm.fine_tuning
    return study.rate_search(stage) is not None and "learning_rate" not in own


def search(
    study: Study, arm: Arm, stage: Stage, progress: Progress, pre_trained_at: float | None = None
) -> dict[float, float | None]:
    """Train an arm at one learning rate after the other, until the best is not at an end.

    What an interrupted search found is found again.

    Args:
        study: A settled study.
        arm: One of its arms.
        stage: Whose rate is chosen.
        progress: Called with the stage and the finished share of it.
        pre_trained_at: For fine-tuning, the rate that was chosen for pre-training, if it was.

    Returns:
        Learning rate → mean loss over the search's texts.

    Raises:
        DeepenError: The base, the data or a text cannot be used.
    """
    asked = study.rate_search(stage)
    assert asked is not None
    folder = Path(study.output) / SEARCH / arm.folder / stage
    make_folders(folder)
    model = make(study, arm, asked.seed, folder, progress).model
    if stage == "sft":
        run = folder / "cpt"
        recipe = study.recipe(arm, asked.seed, "cpt", model, run, pre_trained_at)
        train(recipe, "cpt", progress=progress)
        model = run / "model"
    losses: dict[float, float | None] = {}
    own = arm.rates if stage == "cpt" else []
    waiting = list(dict.fromkeys(own or asked.grid))
    while waiting:
        rate = waiting.pop(0)
        recipe = study.recipe(arm, asked.seed, stage, model, folder / f"{rate:g}", rate)
        losses[rate] = _loss_at(study, asked, recipe, stage, progress)
        if not waiting and len(losses) < asked.most:
            further = beyond(losses)
            waiting = [] if further is None else [further]
    _discard(folder / "cpt")
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
    study: Study, asked: RateSearch, recipe: Recipe, stage: Stage, progress: Progress
) -> float | None:
    """Train at one rate and score; ``None`` if training diverged."""
    run = Path(recipe.output)
    kept = run.with_name(f"{run.name}.txt")
    if kept.is_file():
        try:
            text = read_text(kept, most_bytes=100)
            return None if text == _DIVERGED else float(text)
        except (ValueError, DeepenError):
            raise DeepenError(f"{str(kept)!r} holds no loss; {REMEDY}.") from None
    try:
        trained = train(recipe, stage, progress=progress)
        found = evaluate(
            run / "model",
            perplexity=listed(asked.text),
            max_tokens=asked.max_tokens or study.evaluation.max_tokens,
            sequence_length=study.evaluation.sequence_length,
            batch_size=study.evaluation.batch_size,
            trunk=trunk_below(study, trained),
            progress=progress,
        )
        loss: float | None = fmean(text.loss_nats_per_token for text in found.texts)
    except DivergedError:
        loss = None
    write_whole(kept, _DIVERGED if loss is None else repr(loss))
    _discard(run)
    return loss


def _discard(run: Path) -> None:
    """Delete a run's folder, so that a kill on the way leaves none that looks like a run's."""
    beside = run.with_name(f".{run.name}.discarded")
    shutil.rmtree(beside, ignore_errors=True)
    if run.exists():
        run.rename(beside)
    shutil.rmtree(beside, ignore_errors=True)
