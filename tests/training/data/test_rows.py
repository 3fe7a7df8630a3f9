"""Rows of every kind of file come in order, and damage is told with its place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from deepen.common.errors import DeepenError
from deepen.training.data import rows as reading
from deepen.training.data.rows import Row, rows
from deepen.training.recipe import DataConfig

TEXTS = ["one\ntwo\n", "drei ü\n\nvier", "five"]


def read(path: Path | list[Path], seed: int = 0, **data: Any) -> list[Row]:
    paths = [str(p) for p in path] if isinstance(path, list) else str(path)
    return list(rows(DataConfig.model_validate({"path": paths, **data}), seed))


def texts(path: Path | list[Path], **data: Any) -> list[str]:
    return [row.columns["text"] for row in read(path, **data)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("<sep>".join(TEXTS))
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.json", "d.parquet", "e.txt"])
def test_every_kind_of_file_holds_the_same_rows(folder: Path, name: str) -> None:
    assert texts(folder / name, separator="<sep>") == TEXTS


def test_a_folder_is_its_files_in_order(folder: Path) -> None:
    assert texts(folder, separator="<sep>") == TEXTS * 5
    assert texts([folder / "c.json", folder / "a.jsonl"]) == TEXTS * 2


def test_a_long_text_comes_in_pieces_that_end_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_READ_AT_ONCE", 40)
    text = "".join(f"line {i} ü\r\n" for i in range(50)) + "and a last one without end"
    (tmp_path / "long.txt").write_bytes(text.encode())
    pieces = read(tmp_path / "long.txt")
    assert "".join(piece.columns["text"] for piece in pieces) == text
    assert [piece.continued for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert all(piece.columns["text"].endswith("\n") for piece in pieces[:-2])
    # Pieces of one document stay in order in a shuffled stream too.
    assert read(tmp_path / "long.txt", streaming=True) == pieces


def test_streaming_shuffles_by_the_seed_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": str(i)}) for i in range(99)))
    first = texts(tmp_path / "a.jsonl", streaming=True, seed=1)
    assert first == texts(tmp_path / "a.jsonl", streaming=True, seed=1)
    assert first != texts(tmp_path / "a.jsonl", streaming=True, seed=2)
    assert sorted(first, key=int) == texts(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"', "Line 2 of .*a.jsonl' is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]', "Line 2 of a.jsonl is not an object"),
        ("a.json", b'{"text": "x"}', "does not hold a list"),
        ("a.txt", b"\xff\xfe\x00", "not readable UTF-8"),
        ("a.txt.gz", b"no gzip", "not readable UTF-8"),
        ("a.parquet", b"no parquet", "not a sound parquet file"),
        ("a.csv", b"text\nx", "is of no kind that is read here"),
    ],
)
def test_damage_is_told_with_its_place(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DeepenError, match=said):
        read(tmp_path / name)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match=r"There is no file .*nowhere.txt' \(data\)"):
        read(tmp_path / "nowhere.txt")
    with pytest.raises(DeepenError, match=r"holds no [.]txt"):
        read(tmp_path)
    with pytest.raises(DeepenError, match="neither a file here nor a hub data set"):
        list(rows(DataConfig(path="nobody/nothing"), 0))
