"""The cache is honest: a base is only found if this recipe and this corpus made it, to the end."""

from pathlib import Path

import pytest

from deepen.demo.base import cache_key, cached_base
from deepen.demo.corpus import Corpus
from deepen.demo.recipe import QUICK, BaseRecipe
from deepen.errors import DeepenError
from deepen.methods.base import silent

BUDGET = QUICK.base.budget.model_copy(update={"steps": 2})
RECIPE = QUICK.base.model_copy(update={"vocabulary": 300, "hidden": 16, "budget": BUDGET})
TEXTS = tuple(f"def f_{i}(x):\n    return {i} + x\n" for i in range(60))
CORPUS = Corpus(training=TEXTS, held_out=TEXTS[:10], fingerprint="a")


class KilledError(Exception):
    """Stands for a kill."""


def make(folder: Path, recipe: BaseRecipe = RECIPE, corpus: Corpus = CORPUS) -> bool:
    """Return whether the base was found."""
    record, found = cached_base(folder, recipe, corpus, silent)
    assert record.key == cache_key(recipe, corpus)
    return found


def test_a_base_is_found_again(tmp_path: Path):
    assert [make(tmp_path), make(tmp_path)] == [False, True]


def test_another_recipe_or_corpus_is_another_base(tmp_path: Path):
    make(tmp_path)
    assert not make(tmp_path, recipe=RECIPE.model_copy(update={"seed": 1}))
    assert not make(tmp_path, corpus=Corpus(TEXTS, TEXTS[:10], fingerprint="b"))


def test_changed_weights_are_not_taken_for_the_base(tmp_path: Path):
    make(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not make(tmp_path)


def test_an_interrupted_training_leaves_nothing_that_looks_finished(tmp_path: Path):
    def interrupt(stage: str, share: float) -> None:
        if "training" in stage:
            raise KilledError

    with pytest.raises(KilledError):
        cached_base(tmp_path, RECIPE, CORPUS, interrupt)
    assert not (tmp_path / "base").exists()
    assert [make(tmp_path), make(tmp_path)] == [False, True]


def test_an_interrupted_save_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import PreTrainedTokenizerFast

    def interrupt(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedTokenizerFast, "save_pretrained", interrupt)
        with pytest.raises(KilledError):
            make(tmp_path)
    assert not (tmp_path / "base").exists()
    assert [make(tmp_path), make(tmp_path)] == [False, True]


def test_a_base_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / "base").mkdir()
    with pytest.raises(DeepenError, match="the demo did not make it"):
        make(tmp_path)
    assert (tmp_path / "base").is_dir()
