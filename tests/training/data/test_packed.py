"""Packing: every token of every document, each document ended, nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.common.progress import Tell, silent, unheard
from deepen.training.data import files
from deepen.training.data import packed as module
from deepen.training.data.packed import PackedSequences, load_packed
from deepen.training.recipe import DataConfig, TrainingConfig

DOCUMENTS = [PASSAGE[i : i + 200] for i in range(0, len(PASSAGE), 200)]


def load(path: Path, cache: Path, tell: Tell = unheard, **data: Any) -> PackedSequences:
    # Sequences of one token, which recipes refuse, show every token.
    length = {"sequence_length": data.pop("sequence_length", 16)}
    steps = TrainingConfig(max_steps=3, batch_size=2)
    config = DataConfig.model_validate({"path": str(path), "seed": 0} | data)
    config = config.model_copy(update=length)
    return load_packed(config, steps, tiny.tokenizer(), cache, silent, tell)


def flat(sequences: PackedSequences) -> list[int]:
    return torch.cat([sequences[i]["input_ids"] for i in range(len(sequences))]).tolist()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in [*DOCUMENTS, ""]))
    return path


def test_documents_and_their_ends_fill_the_sequences(file: Path, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    expected = [t for d in DOCUMENTS for t in [*tokenizer(d)["input_ids"], tokenizer.eos_token_id]]
    sequences = load(file, tmp_path / "cache")
    assert len(sequences) == len(expected) // 16
    assert flat(sequences) == expected[: 16 * len(sequences)]
    row = sequences[1]
    assert row["labels"].tolist() == [-100, *row["input_ids"][1:].tolist()]


def test_every_sequence_begins_with_bos_where_the_tokenizer_does(
    file: Path, tmp_path: Path
) -> None:
    bare, tokenizer = load(file, tmp_path / "a", sequence_length=15), tiny.tokenizer("<eos> $A")
    config = DataConfig(path=str(file), seed=0, sequence_length=16)
    steps = TrainingConfig(max_steps=3)
    begun = load_packed(config, steps, tokenizer, tmp_path / "b", silent)
    assert len(begun) == len(bare)
    assert begun.digest() != bare.digest()
    for own, row in zip(map(bare.__getitem__, range(len(bare))), begun, strict=False):
        ids = row["input_ids"].tolist()
        assert ids == [tokenizer.eos_token_id, *own["input_ids"].tolist()]
        assert row["labels"].tolist() == [-100, *ids[1:]]


def test_a_sequence_of_special_tokens_alone_is_refused(file: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(file), seed=0, sequence_length=2)
    tokenizer = tiny.tokenizer("<eos> <eos> $A")
    with pytest.raises(DeepenError, match="2 tokens holds no text behind the 2 special ones"):
        load_packed(config, TrainingConfig(max_steps=3), tokenizer, tmp_path, silent)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join(DOCUMENTS))
    tokens = flat(load(tmp_path / "t.txt", tmp_path / "cache", sequence_length=1))
    assert tokens.count(tiny.tokenizer().eos_token_id) == 1
    assert tokens[-1] == tiny.tokenizer().eos_token_id
    assert tiny.tokenizer().decode(tokens[:-1]) == "\n\n".join(DOCUMENTS)


def test_tokens_are_written_once_and_serve_any_length(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = flat(load(file, cache))
    before = {f.name: f.stat().st_mtime_ns for f in cache.iterdir()}
    again = flat(load(file, cache, sequence_length=8))
    assert again[: len(first)] == first
    assert {f.name: f.stat().st_mtime_ns for f in cache.iterdir()} == before
    load(file, cache, text_column="text", streaming=True)
    assert len(list(cache.iterdir())) == 4


def test_a_stream_is_read_as_far_as_the_budget(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHARACTERS_AT_ONCE", 300)
    whole, needed = load(file, tmp_path / "a"), load(file, tmp_path / "b", streaming=True)
    assert 3 * 2 <= len(needed) < len(whole)


def test_nulls_are_left_out_and_told_once(tmp_path: Path) -> None:
    rows = [{"text": text} for text in [None, *DOCUMENTS, None]]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows[1:-1])))
    heard: list[str] = []
    with_nulls = load(tmp_path / "n.jsonl", tmp_path / "a", tell=heard.append)
    assert flat(with_nulls) == flat(load(tmp_path / "d.jsonl", tmp_path / "b"))
    (said,) = heard
    assert said.startswith("Left out 2 rows of")
    assert "null in column 'text'" in said
    load(tmp_path / "n.jsonl", tmp_path / "a", tell=heard.append)  # found again, told again
    assert heard == [said, said]


def test_a_long_document_is_tokenised_in_pieces_and_ends_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": PASSAGE}))
    tokenizer, lengths = tiny.tokenizer(), []
    plain = type(tokenizer).__call__

    def counted(self: Any, texts: list[str], **more: Any) -> Any:
        lengths.extend(map(len, texts if isinstance(texts, list) else []))
        return plain(self, texts, **more)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    monkeypatch.setattr(files, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(module, "_CHARACTERS_AT_ONCE", 100)
    tokens = flat(load(tmp_path / "d.jsonl", tmp_path / "cache", sequence_length=1))
    assert len(lengths) > 4
    assert max(lengths) <= 200
    assert sum(lengths) == len(PASSAGE)
    assert tokens.count(tokenizer.eos_token_id) == 1
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == PASSAGE


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ("", {}, "holds no text"),
        ('{"text": ""}', {}, "holds no text"),
        ('{"text": "x"}', {}, "holds 2 tokens, fewer than one sequence of 16"),
        (
            '{"text": "x"}\n{"txt": "x", "id": 2}',
            {},
            r"Line 2 of d.jsonl has no column 'text' \(its columns: txt, id\); set data.text",
        ),
        ('{"text": "x"}', {"text_column": "body"}, r"no column 'body' \(its columns: text\)"),
        ("{}", {}, "no column 'text' .it has no columns at all"),
        ('{"text": 3}', {}, "Line 1 of d.jsonl holds a number in column 'text'"),
        ('{"text": [{}]}', {}, "holds a list in column 'text'"),
        ('{"text": null}', {}, "holds no text"),
    ],
)
def test_unusable_data_are_told_and_leave_nothing(
    tmp_path: Path, content: str, settings: dict[str, Any], said: str
) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(DeepenError, match=said):
        load(tmp_path / "d.jsonl", tmp_path / "run" / "cache", **settings)
    left = list(tmp_path.rglob("*.bin"))
    assert (not left and not (tmp_path / "run").exists()) or "fewer" in said


def test_an_empty_text_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.txt").touch()
    with pytest.raises(DeepenError, match="holds no text"):
        load(tmp_path / "t.txt", tmp_path / "cache")


def test_a_tokenizer_without_an_end_is_told(file: Path, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    data = DataConfig(path=str(file), seed=0)
    with pytest.raises(DeepenError, match="no end-of-text token"):
        load_packed(data, TrainingConfig(), tokenizer, tmp_path / "cache", silent)
