"""The trained model's card: what its front matter tells the hub."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from deepen.records.training import SourceRecord, TrainRecord
from deepen.training import train
from deepen.training.card import trained_card
from deepen.training.recipe import Recipe

BEFORE = """---
license: llama3.2
license_name: l
language: [pt, en]
datasets: a/old
tags: [chat]
base_model: a/before
model-index:
- name: before
  results:
  - task: {type: text-generation}
    dataset: {type: arc, name: ARC}
    metrics: [{type: acc, value: 0.5}]
---

# Before

Words of its authors.
"""


@pytest.fixture(scope="module")
def record(grown: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRecord:
    settings = {"max_steps": 1, "batch_size": 1, "report_to": "none"}
    recipe = {
        "model": str(grown),
        "data": {"path": str(corpus), "sequence_length": 32},
        "training": settings,
        "output": str(tmp_path_factory.mktemp("runs") / "run"),
    }
    return train(Recipe.model_validate(recipe), "cpt")


def with_source(record: TrainRecord, name: str) -> TrainRecord:
    source = SourceRecord(name=name, share=1.0, items=1, sequences=1, tokens=1)
    return record.model_copy(update={"sources": [source]})


def test_front_matter_stays_and_tells_what_was_trained_on(record: TrainRecord) -> None:
    told = with_source(record, "owner/texts, corpus.txt")
    card = ModelCard(trained_card(BEFORE, told, "owner/base"))
    data = card.data.to_dict()
    assert data["license"] == "llama3.2"
    assert data["license_name"] == "l"
    assert data["language"] == ["pt", "en"]
    assert (data["base_model"], data["base_model_relation"]) == ("owner/base", "finetune")
    assert data["datasets"] == ["a/old", "owner/texts"]
    assert data["tags"] == ["chat", "deepen", "continual-pretraining"]
    assert "model-index" not in data  # scores of the model before
    assert "Words of its authors." in card.text
    assert "## Continual pre-training" in card.text


def test_a_list_that_is_none_is_begun_anew(record: TrainRecord) -> None:
    before = "---\nlicense: mit\ndatasets: 5\n---\n\nWords.\n"
    data = ModelCard(trained_card(before, with_source(record, "a/b"))).data.to_dict()
    assert data["license"] == "mit"
    assert data["datasets"] == ["a/b"]


def test_a_grown_model_keeps_its_front_matter(record: TrainRecord) -> None:
    data = ModelCard.load(Path(record.output) / "model" / "README.md").data.to_dict()
    assert data["license"] == "mit"
    assert data["tags"][-1] == "continual-pretraining"
    assert len(data["tags"]) == len({*data["tags"]})
    assert "datasets" not in data  # a file of one's own has no name on the hub
    assert "base_model" not in data


@pytest.mark.parametrize("before", ["", "# No front matter\n"])
def test_a_card_without_front_matter_gets_one(record: TrainRecord, before: str) -> None:
    card = ModelCard(trained_card(before, record))
    assert card.data.to_dict()["library_name"] == "transformers"
    assert before.strip() in card.text
    again = trained_card(str(card.content), record)
    assert ModelCard(again).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize(
    "front", ["a: [", "- a\n- b", "tags: {", "tags: 5", "a: 2001-99-99", "\ta: b"]
)
def test_front_matter_that_nobody_can_read_is_left(record: TrainRecord, front: str) -> None:
    before = f"---\n{front}\n---\n\n# Mine\n"
    card = trained_card(before, record)
    assert card.startswith(before.rstrip())
    assert "## Continual pre-training" in card
