"""Families of all sorts are trained and published, also where memory and disk differ."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import deepen
import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.model import open_model
from deepen.training import train
from runs import Make, losses

FAMILIES = ["mixtral", "gpt2", "gemma2", "gpt_neox", "qwen3_next", "deepseek_v3", "jamba", "bloom"]


@pytest.fixture(params=FAMILIES)
def grown(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny grown checkpoint in bfloat16, with a tokenizer."""
    model_type, settings = CASES[request.param]
    model = shrink.model(model_type, **settings).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    deepen.grow(tmp_path / "base", tmp_path / "grown")
    return tmp_path / "grown"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_new_blocks_learn_and_frozen_ones_keep_their_bits(
    grown: Path, recipe: Make, checkpointing: bool
) -> None:
    asked = recipe(model=grown, activation_checkpointing=checkpointing, learning_rate=3e-3)
    record = train(asked, "cpt")
    assert len(losses(record)) == 6
    assert record.flops_per_token > 0
    out = Path(asked.output) / "model"
    before, after = FolderSource(grown), FolderSource(out)
    assert before.infos == after.infos
    family, new = open_model(grown).family, set(before.config["deepen"]["new_blocks"])
    changed = set()
    for name in before.infos:
        place = family.split(name)
        same = torch.equal(as_bytes(before.load(name)), as_bytes(after.load(name)))
        assert same or (place is not None and place[0] in new), name
        changed |= {place[0]} if place and not same else set()
    assert changed == new
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
