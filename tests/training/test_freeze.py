"""What trains is what the checkpoint's entry or the recipe says."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth.grow import grow
from deepen.training.freeze import counts, freeze, trainable
from deepen.training.recipe import TrainingConfig


def chosen(folder: Path, **training: Any) -> set[str]:
    """Return the names of the parameters that a recipe would train."""
    model = open_model(folder)
    config = TrainingConfig.model_validate(training)
    module = tiny.load(folder)
    freeze(module, trainable(model.source.config, model.depth, config, "m"), model.family)
    return {name for name, p in module.named_parameters() if p.requires_grad}


def names(folder: Path, *starts: str) -> set[str]:
    return {n for n, _ in tiny.load(folder).named_parameters() if n.startswith(starts)}


def test_new_blocks_train_and_nothing_else(grown: Path) -> None:
    assert chosen(grown) == names(grown, "model.layers.4.", "model.layers.6.")


def test_norm_head_and_a_list_of_blocks_can_be_asked_for(grown: Path) -> None:
    asked = chosen(grown, trains=[0], also=["norm", "head"])
    assert asked == names(grown, "model.layers.0.", "model.norm.", "lm_head.")


def test_solar_trains_everything_unless_told_otherwise(llama: Path, tmp_path: Path) -> None:
    grow(llama, tmp_path / "solar", method="solar", new_layers=2)
    new = json.loads((tmp_path / "solar" / "config.json").read_text())["deepen"]["new_blocks"]
    assert chosen(tmp_path / "solar") == names(tmp_path / "solar", "")
    blocks = names(tmp_path / "solar", *(f"model.layers.{i}." for i in new))
    assert chosen(tmp_path / "solar", trains="new_blocks") == blocks


def test_a_tied_head_is_the_embeddings(tmp_path: Path) -> None:
    tied = tiny.save(tmp_path / "tied", "qwen3")
    assert chosen(tied, trains=[], also=["head"]) == {"model.embed_tokens.weight"}


def test_counts_are_of_distinct_parameters(grown: Path) -> None:
    model = tiny.load(grown)
    assert counts(model) == (model.num_parameters(), model.num_parameters())


def test_refusals(llama: Path, grown: Path) -> None:
    with pytest.raises(DeepenError, match=r"not grown by deepen.*training.trains=\[4,5\]"):
        chosen(llama)
    with pytest.raises(DeepenError, match="Nothing would be trained"):
        chosen(grown, trains=[])
    with pytest.raises(DeepenError, match="no block 8 to train: m has blocks 0 to 7"):
        chosen(grown, trains=[2, 8])
