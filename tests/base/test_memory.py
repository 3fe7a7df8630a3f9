"""A model in memory: what is loaded is what is stored."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import deepen
import shrink
import tiny
from deepen.base.checkpoint import FolderSource
from deepen.base.memory import load_pretrained
from deepen.common.errors import DeepenError


def test_tensors_that_transformers_would_make_up_are_named(llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"mlp_bias": True}
    (base / "config.json").write_text(json.dumps(config))
    sentence = (
        r"base lacks tensor 'model.layers.0.mlp.down_proj.bias' and 17 more, which the model that "
        r"config.json describes has, and transformers would make it up; correct"
    )
    with pytest.raises(DeepenError, match=sentence):
        load_pretrained(FolderSource(base), torch.float32)
    with pytest.raises(DeepenError, match=sentence):
        deepen.evaluate(base, perplexity=[base / "LICENSE"])


def test_a_tied_head_is_not_made_up(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "tied", "qwen3")
    source = FolderSource(base)
    assert "lm_head.weight" not in source.infos
    module = load_pretrained(source, torch.float32)
    assert torch.equal(module.lm_head.weight, source.load("model.embed_tokens.weight").float())


def test_how_random_weights_would_be_made_refuses_no_model(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shrink.model("gemma3_text", num_hidden_layers=2).save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"initializer_range": -0.5}
    (base / "config.json").write_text(json.dumps(config))
    deepen.grow(base, tmp_path / "grown", method="llama-pro", new_layers=1)
    assert deepen.verify(base, tmp_path / "grown", sequences=1, length=4).passed
