"""One row of the table: grow, verify, score, train on, score again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.demo.recipe import Recipe
from deepen.demo.results import DemoRow
from deepen.demo.tokens import Tokens
from deepen.demo.training import Score, Training, freeze, score, train
from deepen.growth import grow
from deepen.methods.base import Progress
from deepen.records import GrowRecord
from deepen.staging import check_out, staged
from deepen.verification import VerifyRecord, verify


@dataclass(frozen=True)
class Setting:
    """What is the same for every model of the comparison."""

    folder: Path
    """Where the checkpoints lie: ``base``, ``grown/METHOD``, ``trained/METHOD``."""
    recipe: Recipe
    """The budget and the sizes."""
    tokens: Tokens
    """The data."""
    token_bytes: Tensor
    """Bytes of text that each token stands for, ``[vocabulary]``."""
    tokenizer: Any
    """Saved beside every trained model."""
    progress: Progress
    """Called with the stage and its finished share."""


def compare_base(setting: Setting) -> list[DemoRow]:
    """Make the rows to be compared with: the base as it is, and the base trained on."""
    model = load(setting.folder / "base")
    before, training, after = _train_on(setting, model, "base")
    untouched = DemoRow(name="base", parameters=model.num_parameters(), before=before)
    trained = untouched.model_copy(
        update={"name": "base, trained on", "training": training, "after": after}
    )
    return [untouched, trained]


def compare_method(setting: Setting, method: str) -> DemoRow:
    """Make a method's row."""
    grown, verified = _grow(setting, method)
    model = load(setting.folder / "grown" / method)
    freeze(model, grown.step)
    before, training, after = _train_on(setting, model, method)
    return DemoRow(
        name=method,
        parameters=grown.parameters,
        new_parameters=grown.new_parameters,
        before=before,
        after=after,
        training=training,
        grow_seconds=grown.wall_seconds,
        max_abs_logit_difference=verified.max_abs_logit_difference,
        kl_nats_per_token=verified.kl_nats_per_token,
        notes=grown.notes,
    )


def load(folder: Path) -> Any:  # noqa: ANN401 (transformers decides on the class)
    """Load a checkpoint as anybody would."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def _grow(setting: Setting, method: str) -> tuple[GrowRecord, VerifyRecord]:
    """Grow the base by one method and prove it.

    Raises:
        RuntimeError: The grown checkpoint is not what it claims.
    """
    base, out = setting.folder / "base", setting.folder / "grown" / method
    grown = grow(
        base,
        out,
        method=method,
        new_layers=setting.recipe.new_layers,
        seed=setting.recipe.base.seed,
        device="cpu",
        overwrite=True,
        progress=setting.progress,
    )
    verified = verify(base, out, progress=_named(setting.progress, f"{method}: verifying, "))
    if not verified.passed:
        failed = [f"{check.name}: {check.detail}" for check in verified.checks if not check.passed]
        raise RuntimeError(f"{method} did not pass verification ({'; '.join(failed)})")
    return grown, verified


def _named(progress: Progress, prefix: str) -> Progress:
    """Put a prefix before every stage's name."""
    return lambda stage, share: progress(prefix + stage, share)


def _train_on(setting: Setting, model: Any, name: str) -> tuple[Score, Training, Score]:  # noqa: ANN401
    """Score, train on the tokens that follow the base's own, save, score."""
    recipe, progress = setting.recipe, setting.progress
    held_out = setting.tokens.held_out[: recipe.scored_sequences]
    stage = f"{name}: perplexity before"
    before = score(model, held_out, setting.token_bytes, progress, stage)
    sequences = setting.tokens.batch_order(
        recipe.base.budget.total_sequences, recipe.continued.total_sequences
    )
    training = train(model, sequences, recipe.continued, progress, f"{name}: training")
    _save(setting, model, name)
    stage = f"{name}: perplexity after"
    return before, training, score(model, held_out, setting.token_bytes, progress, stage)


def _save(setting: Setting, model: Any, name: str) -> None:  # noqa: ANN401
    """Save a trained model as a checkpoint."""
    out = setting.folder / "trained" / name
    check_out(out, None, overwrite=True)
    needed = sum(parameter.nbytes for parameter in model.parameters())
    with staged(out, {}, needed, resume=False, overwrite=True) as folder:
        model.save_pretrained(folder)
        setting.tokenizer.save_pretrained(folder)
