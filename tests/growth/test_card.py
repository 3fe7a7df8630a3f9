"""The model card."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import deepen
import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import as_model
from deepen.growth.card import model_card, without_untrained
from deepen.growth.preview import config_of, grow_record, lineage_of, resolve
from deepen.records.growth import GrowRecord, GrowRequest

PLAIN = ("llama", "mistral", "qwen2", "qwen3")


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


def grow_record_of(method: str, **options: object) -> GrowRecord:
    """Return what is recorded of a tiny Llama's growth."""
    module = tiny.model()
    base = as_model(ModuleSource(module, module.config.to_dict()))
    growth = resolve(base, GrowRequest(method=method, options=options, device="cpu"))
    return grow_record(growth, lineage_of(growth))


@pytest.mark.parametrize("family", [*PLAIN, *CASES])
def test_the_code_of_a_card_trains_the_new_blocks_of_every_family(family: str) -> None:
    model_type, settings = CASES.get(family, (family, {}))
    module = tiny.model(family) if family in PLAIN else shrink.model(model_type, **settings)
    base = as_model(ModuleSource(module, module.config.to_dict()))
    growth = resolve(base, GrowRequest(method="llama-pro", device="cpu"))
    lineage = lineage_of(growth)
    card = model_card(Path("nowhere"), grow_record(growth, lineage), base.blocks_path)
    config = type(module.config).from_dict(config_of(growth, lineage))
    model = AutoModelForCausalLM.from_config(config)
    exec(card.split("```python")[1].split("```")[0], {"model": model})
    # In every family the first number in a parameter's name is its block's.
    numbers = {name: re.search(r"\.(\d+)\.", name) for name, _ in model.named_parameters()}
    new = {n for n, number in numbers.items() if number and int(number[1]) in lineage.new_blocks}
    assert new
    assert {name for name, p in model.named_parameters() if p.requires_grad} == new


@pytest.mark.parametrize("options", [{}, {"fidelity": "structured", "solver": "exact"}])
def test_options_at_their_defaults_are_not_listed(options: dict[str, str]) -> None:
    card = model_card(Path("nowhere"), grow_record_of("opt-deus", **options), "model.layers")
    assert "- Options: the method's defaults\n" in card
    card = model_card(
        Path("nowhere"), grow_record_of("opt-deus", matched_share=0.5), "model.layers"
    )
    assert "- Options: matched_share = 0.5\n" in card


LATER = "\n## Licence\n\nAs the base's.\n"


@pytest.mark.parametrize("method", ["llama-pro", "avg-deus", "solar", "repeat"])
@pytest.mark.parametrize("later", ["", LATER])
def test_what_is_true_only_until_training_can_be_taken_out(method: str, later: str) -> None:
    options = {"trains": "nothing"} if method == "repeat" else {}
    card = model_card(Path("nowhere"), grow_record_of(method, **options), "model.layers") + later
    assert "not been trained" in card
    assert "## How to train it" in card
    start, end = card.index("**It has not"), card.index("| | base | this model |")
    kept = card[:start] + card[end : card.index("## How to train it")] + later
    assert without_untrained(card) == kept
    assert without_untrained(kept) == kept


def test_cards_of_the_first_version_are_understood() -> None:
    record = grow_record_of("llama-pro")
    card = model_card(Path("nowhere"), record, "model.layers")
    before = card.replace('model.get_submodule("model.layers")', "model.model.layers")
    assert before != card
    assert without_untrained(before) == without_untrained(card)
