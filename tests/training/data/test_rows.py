"""Rows of every kind of file come in order, and damage is told with its place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from deepen.common.errors import DeepenError
from deepen.training.data import files as reading
from deepen.training.data.files import Row, good_cut
from deepen.training.data.rows import rows
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


def test_files_come_as_other_programs_write_them(tmp_path: Path) -> None:
    lines = "\r\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    table = "id,text\r\n" + "".join(f'{i},"{text}"\r\n' for i, text in enumerate(TEXTS))
    mark = b"\xef\xbb\xbf"  # of UTF-8, as spreadsheets and PowerShell write it
    (tmp_path / "A.JSONL").write_bytes(mark + lines)
    (tmp_path / "b.ndjson").write_bytes(lines)
    (tmp_path / "c.csv").write_bytes(mark + table.encode())
    (tmp_path / "d.CSV.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "e.txt").write_bytes(mark + "<sep>".join(TEXTS).encode())
    (tmp_path / "f.json").write_bytes(mark + json.dumps([{"text": t} for t in TEXTS]).encode())
    for file in tmp_path.iterdir():
        assert texts(file, separator="<sep>") == TEXTS, file.name


def test_a_field_of_a_table_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000)
    assert texts(tmp_path / "a.csv") == ["x" * 200_000]


def test_hidden_files_of_a_folder_are_passed_over(folder: Path) -> None:
    (folder / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl").write_text("{}")
    assert texts(folder, separator="<sep>") == TEXTS * 5


@pytest.mark.parametrize(
    ("text", "cut"),
    [("one two\nthree four", 8), ("one two", 3), ("abc", 3), (" abc", 4), ("abc\n", 4)],
)
def test_a_text_is_cut_behind_a_line_or_before_a_word(text: str, cut: int) -> None:
    assert good_cut(text) == cut


def test_a_long_text_comes_in_pieces_that_end_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_CHARACTERS", 40)
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
        ("a.jsonl", b'{"text": "x"}\n{"text"', "Line 2 of .*a.jsonl' is not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]', "Line 2 of a.jsonl is not an object"),
        ("a.json", b'{"text": "x"}', "does not hold a list"),
        ("a.txt", b"\xff\xfe\x00", "not readable UTF-8"),
        ("a.txt.gz", b"no gzip", "not readable UTF-8"),
        ("a.parquet", b"no parquet", "not a sound parquet file"),
        ("a.csv", b"text,id\nx,1\ny", "Row 2 of a.csv has not as many fields"),
        ("a.csv", b'text\n"x', "not a sound CSV file"),
        ("a.doc", b"x", "is of no kind that is read here"),
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
