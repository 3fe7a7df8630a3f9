"""Sources of a mixture: read alone, kept alone, and what is wrong with one is told."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import ConcatDataset

import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.common.progress import silent
from deepen.common.settings import validate
from deepen.training.data.examples import join_examples, load_examples
from deepen.training.data.mixture import Mixture
from deepen.training.data.packed import load_packed
from deepen.training.data.sources import load_sources, sources
from deepen.training.recipe import DataConfig, MixedSource, Recipe, TrainingConfig


def config(**settings: Any) -> DataConfig:
    known = {"path": "new.txt", "sequence_length": 16, "seed": 0}
    return validate(DataConfig, known | settings, "data")


def packed(data: DataConfig, cache: Path) -> tuple[Any, Mixture]:
    training, tokenizer = TrainingConfig(max_steps=1), tiny.tokenizer()
    return load_sources(
        data, lambda d: load_packed(d, training, tokenizer, cache, silent), ConcatDataset
    )


@pytest.fixture
def new(tmp_path: Path) -> Path:
    file = tmp_path / "new.txt"
    file.write_text(PASSAGE)
    return file


@pytest.fixture
def old(tmp_path: Path) -> Path:
    file = tmp_path / "old.jsonl"
    rows = [{"body": PASSAGE[i : i + 90]} for i in range(0, 900, 90)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_source_has_what_it_says_and_else_what_the_main_data_have() -> None:
    mixed = [{"path": "a", "share": 0.1, "text_column": "b"}, {"path": ["c"], "share": 0.2}]
    data = config(name="n", revision="r", split="s", separator="|", mix=mixed)
    main, first, second = sources(data)
    assert main == data.model_copy(update={"mix": []})
    own = {"path": "a", "text_column": "b", "name": None, "revision": None}
    assert first == main.model_copy(update=own)
    assert second == main.model_copy(update={"path": ["c"], "name": None, "revision": None})
    assert data.shares == [Fraction(7, 10), Fraction(1, 10), Fraction(2, 10)]


def test_sequences_of_all_sources_lie_one_behind_the_other(
    new: Path, old: Path, tmp_path: Path
) -> None:
    mixed = {"path": str(old), "share": 0.25, "text_column": "body"}
    both, mixture = packed(config(path=str(new), mix=[mixed]), tmp_path / "cache")
    alone = [
        packed(config(path=str(new)), tmp_path / "cache")[0],
        packed(config(path=str(old), text_column="body"), tmp_path / "cache")[0],
    ]
    assert mixture == Mixture(tuple(map(len, alone)), (Fraction(3, 4), Fraction(1, 4)))
    expected = [row["input_ids"].tolist() for part in alone for row in rows(part)]
    assert [row["input_ids"].tolist() for row in rows(both)] == expected
    # A source that stands alone finds the tokens that it left in a mixture.
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2


def rows(data: Any) -> list[Any]:
    return [data[index] for index in range(len(data))]


@pytest.mark.parametrize("packing", [False, True])
def test_fine_tuning_rows_are_mixed_each_in_its_own_form(packing: bool, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "completion": "y"}\n' * 9)
    (tmp_path / "b.jsonl").write_text('{"instruction": "x", "output": "z"}\n' * 4)
    mixed = [{"path": str(tmp_path / "b.jsonl"), "share": 0.5}]
    data = config(path=str(tmp_path / "a.jsonl"), sequence_length=200, packing=packing, mix=mixed)
    tokenizer = tiny.tokenizer()
    both, mixture = load_sources(
        data, lambda d: load_examples(d, tokenizer, tmp_path / "cache", silent), join_examples
    )
    assert mixture.items == ((1, 4) if packing else (9, 4))
    assert len(both) == sum(mixture.items)
    assert ["z" in tokenizer.decode(ids) for ids in both["input_ids"][-2:]] == [True, True]
    assert "Response" not in tokenizer.decode(both[0]["input_ids"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mix": [{"path": "a", "share": 0.7}, {"path": "b", "share": 0.3}]}, "nothing to data"),
        ({"mix": [{"path": "a", "share": 1.0}]}, "share"),
        ({"mix": [{"path": "a", "shares": 0.1}]}, "did you mean 'mix.0.share'"),
    ],
)
def test_impossible_mixtures_are_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DeepenError, match=said):
        config(**settings)


def test_a_recipe_looks_at_data_that_were_changed() -> None:
    mixed = [MixedSource(path="a", share=0.5), MixedSource(path="b", share=0.5)]
    changed = config().model_copy(update={"mix": mixed})
    with pytest.raises(DeepenError, match=r"add up to 1 and leave nothing to data\.path"):
        Recipe(model="m", data=changed, output="o")


def test_streamed_sources_are_mixed_and_the_main_one_is_read_as_it_is_alone(
    new: Path, old: Path, tmp_path: Path
) -> None:
    mixed = {"path": str(old), "share": 0.5, "text_column": "body"}
    both, mixture = packed(config(path=str(new), streaming=True, mix=[mixed]), tmp_path / "cache")
    alone, _ = packed(config(path=str(new), streaming=True), tmp_path / "cache")
    assert mixture.items[0] == len(alone)
    assert all(
        both[i]["input_ids"].tolist() == alone[i]["input_ids"].tolist() for i in range(len(alone))
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "old.txt' .* holds no text"), ("x", "old.txt' .* holds 2 tokens, fewer than one")],
)
def test_a_source_without_a_sequence_is_named(
    content: str, said: str, new: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.txt").write_text(content)
    data = config(path=str(new), mix=[{"path": str(tmp_path / "old.txt"), "share": 0.1}])
    with pytest.raises(DeepenError, match=said):
        packed(data, tmp_path / "cache")
