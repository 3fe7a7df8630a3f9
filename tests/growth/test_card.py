"""The model card."""

import shutil

import pytest
import torch
from huggingface_hub import ModelCard

import deepen
import tiny


def test_licence_and_language_are_inherited_and_the_growth_is_told(llama, tmp_path):
    record = deepen.grow(llama, tmp_path / "grown", options={"fidelity": "normalised"})
    card = ModelCard.load(tmp_path / "grown/README.md")
    assert card.data.license == "mit"
    assert card.data.language == "en"
    assert card.data.base_model is None  # a local folder is no hub id
    assert "grown from 6 to 9 blocks" in card.text
    assert "fidelity = normalised" in card.text
    assert f"{record.parameters:,}" in card.text
    assert str(tmp_path) not in card.content


@pytest.mark.parametrize("method", ["opt-deus", "solar"])
def test_the_training_recipe_runs_and_trains_what_it_says(llama, tmp_path, method):
    record = deepen.grow(llama, tmp_path / "grown", method=method)
    text = (tmp_path / "grown/README.md").read_text()
    model = tiny.load(tmp_path / "grown")
    if method == "opt-deus":
        exec(text.split("```python")[1].split("```")[0], {"model": model})
    else:
        assert "Train everything" in text
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == record.trainable_parameters


def test_a_base_without_a_card(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base", ignore=shutil.ignore_patterns("README.md"))
    deepen.grow(base, tmp_path / "grown", method="llama-pro", device="cpu")
    assert "license" not in ModelCard.load(tmp_path / "grown/README.md").data.to_dict()
    assert torch.isfinite(tiny.load(tmp_path / "grown").lm_head.weight).all()
