"""A tiny grown checkpoint and text to train it on."""

from pathlib import Path
from typing import Any

import pytest

from deepen.base.text import PASSAGE
from deepen.growth.grow import grow
from deepen.records.training import TrainRecord
from deepen.training import train
from deepen.training.recipe import Recipe
from runs import Make


@pytest.fixture(scope="session")
def grown(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bfloat16 Llama with two new blocks, 4 and 6 of 8; read only."""
    out = tmp_path_factory.mktemp("grown") / "tiny-grown"
    grow(llama, out, new_layers=2)
    return out


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of some 3000 tokens."""
    file = tmp_path_factory.mktemp("data") / "corpus.txt"
    file.write_text(PASSAGE * 5, encoding="utf-8")
    return file


def recipes(folder: Path, grown: Path, corpus: Path) -> Make:
    """Return what makes recipes of six small steps, whose output is in a folder."""

    def make(
        data: dict[str, Any] | None = None,
        output: str = "run",
        model: Path = grown,
        **training: Any,
    ) -> Recipe:
        return Recipe.model_validate(
            {
                "model": str(model),
                "data": {"path": str(corpus), "sequence_length": 32} | (data or {}),
                "training": {
                    "max_steps": 6,
                    "batch_size": 4,
                    "learning_rate": 1e-2,
                    "report_to": "none",
                    "save_every": 2,
                }
                | training,
                "output": str(folder / output),
            }
        )

    return make


@pytest.fixture
def recipe(grown: Path, corpus: Path, tmp_path: Path) -> Make:
    """Make a recipe of six small steps; data and training settings can be changed."""
    return recipes(tmp_path, grown, corpus)


@pytest.fixture(scope="session")
def whole(grown: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRecord:
    """The pre-training of an unchanged recipe, which nobody disturbed; read only."""
    return train(recipes(tmp_path_factory.mktemp("whole"), grown, corpus)(), "cpt")
