"""Whole runs on mixtures: what is drawn is what is trained on, recorded, and resumed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.training import train
from deepen.training.data.order import Order
from runs import Make, interrupted, losses


@pytest.fixture
def replay(tmp_path: Path) -> dict[str, Any]:
    """A quarter of the sequences from a text of its own."""
    (tmp_path / "old.txt").write_text(PASSAGE[::-1])
    return {"mix": [{"path": str(tmp_path / "old.txt"), "share": 0.25}]}


def sequences_of(file: Path) -> torch.Tensor:
    tokenizer = tiny.tokenizer()
    ids = torch.tensor([*tokenizer(file.read_text())["input_ids"], tokenizer.eos_token_id])
    return ids[: len(ids) // 32 * 32].view(-1, 32)


def test_a_step_has_the_sequences_of_the_mixture(
    recipe: Make, replay: dict[str, Any], grown: Path, corpus: Path
) -> None:
    record = train(recipe(replay, max_steps=1), "cpt")
    new, old = sequences_of(corpus), sequences_of(Path(replay["mix"][0]["path"]))
    batch = torch.stack([*new[list(Order(len(new), 3, 0))], old[first_of_old(len(old))]])
    logits = tiny.load(grown)(batch).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    assert losses(record) == pytest.approx([expected.item()], rel=1e-5)


def first_of_old(items: int) -> int:
    """Return the first sequence that is drawn of the source behind the main one, at seed 0."""
    return int(np.random.default_rng([0, 0, 1]).permutation(items)[0])


def test_record_and_card_name_the_sources(
    recipe: Make, replay: dict[str, Any], corpus: Path
) -> None:
    record = train(recipe(replay), "cpt")
    new, old = record.sources
    assert (new.name, new.share, new.sequences, new.tokens) == ("corpus.txt", 0.75, 18, 18 * 32)
    assert (old.name, old.share, old.sequences, old.tokens) == ("old.txt", 0.25, 6, 6 * 32)
    assert (new.items, new.tokens + old.tokens) == (len(sequences_of(corpus)), record.tokens)
    card = (Path(record.output) / "model" / "README.md").read_text()
    assert "- Data: corpus.txt (share 0.75), old.txt (share 0.25), sequences of 32" in card
    alone = train(recipe(output="alone", max_steps=1), "cpt").sources
    assert [(source.name, source.share, source.sequences) for source in alone] == [
        ("corpus.txt", 1.0, 4)
    ]


def test_a_killed_run_on_a_mixture_goes_on_and_another_mixture_is_refused(
    recipe: Make, replay: dict[str, Any]
) -> None:
    expected = train(recipe(replay, output="whole"), "cpt")
    record = interrupted(recipe, 3, data=replay)
    assert record.resumed_from_step == 2
    assert losses(record) == losses(expected)
    assert record.sources == expected.sources
    with pytest.raises(DeepenError, match=r"data\.mix was .* is \[\]"):
        train(recipe(), "cpt")


def test_rows_are_mixed_in_fine_tuning(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"prompt": "a", "completion": "b c"}\n' * 9)
    (tmp_path / "old.jsonl").write_text('{"prompt": "d", "completion": "e f g h"}\n' * 5)
    mixed = [{"path": str(tmp_path / "old.jsonl"), "share": 0.4}]
    data = {"path": str(tmp_path / "new.jsonl"), "mix": mixed}
    record = train(recipe(data, max_steps=None, epochs=2, batch_size=5), "sft")
    # 18 rows of the main data and 12 of the other.
    assert record.steps == 6
    assert [(source.sequences, source.items) for source in record.sources] == [(18, 9), (12, 5)]
    assert sum(source.tokens for source in record.sources) == record.tokens


def test_a_source_that_is_not_there_stops_the_run_before_it_begins(
    recipe: Make, tmp_path: Path
) -> None:
    with pytest.raises(DeepenError, match="There is no file"):
        train(recipe({"mix": [{"path": "gone.txt", "share": 0.1}]}), "cpt")
    assert not (tmp_path / "run").exists()
