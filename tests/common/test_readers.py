"""Every reader of files that people write, or that a kill may damage, is bounded."""

import gzip
import os
import time
from pathlib import Path

import pytest

from deepen.common.bounded import MOST_PARTS
from deepen.common.errors import DeepenError
from deepen.comparison.results import RATES, RECORDS, read_rates, read_records
from deepen.comparison.spans.record import SCAN, read_scan
from deepen.growth.base_files import BASE_FILES, MANIFEST, read_base_files
from deepen.growth.manifest import read_manifest
from deepen.growth.write import layout_of
from deepen.packs.pack import PACK, open_pack
from deepen.records.record import read_record
from deepen.records.training import TrainRecord
from deepen.training.data import files

READERS = {
    "record.json": lambda folder: read_record(TrainRecord, folder / "record.json", "go"),
    RECORDS: read_records,
    RATES["cpt"]: read_rates,
    SCAN: read_scan,
    BASE_FILES: lambda folder: read_base_files(folder, 1),
    MANIFEST: read_manifest,
    PACK: open_pack,
    "rows.jsonl": lambda folder: list(files.file_rows(folder / "rows.jsonl", "text", None)),
    "rows.json": lambda folder: list(files.file_rows(folder / "rows.json", "text", None)),
    "rows.csv": lambda folder: list(files.file_rows(folder / "rows.csv", "text", None)),
    "rows.txt": lambda folder: list(files.file_rows(folder / "rows.txt", "text", None)),
    "rows.jsonl.gz": lambda folder: list(files.file_rows(folder / "rows.jsonl.gz", "text", None)),
}
OPTIONAL = {RECORDS, RATES["cpt"], BASE_FILES, MANIFEST}
"""What is no regular file is to these as good as missing."""
NESTED = [name for name in READERS if not name.endswith((".csv", ".txt"))]


def refused(name: str, folder: Path) -> str:
    """Return the one sentence that a reader ends with, in no time."""
    started = time.monotonic()
    with pytest.raises(DeepenError) as caught:
        READERS[name](folder)
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    if name in OPTIONAL:
        assert not READERS[name](tmp_path)
    else:
        assert "regular file" in refused(name, tmp_path) or name == PACK


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 300 + "]" * 300])
@pytest.mark.parametrize("name", NESTED)
def test_deep_nesting_is_told(tmp_path, name, text):
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt") as stream:
        stream.write(text)
    assert refused(name, tmp_path)


@pytest.mark.parametrize("name", NESTED)
def test_many_parts_are_told_before_they_take_memory(tmp_path, name):
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt") as stream:
        stream.write("[" + "[]," * MOST_PARTS + "[]]")
    assert "parts" in refused(name, tmp_path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz"])
def test_a_line_has_a_most_length(tmp_path, name, monkeypatch):
    monkeypatch.setattr(files, "_MOST_CHARACTERS", 1000)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt") as stream:
        stream.write('{"text": "' + "x" * 1000 + '"}')
    assert "1,000 characters" in refused(name, tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        "[" * 300,
        '{"a": 1}',
        '{"a": {}}',
        '{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}',
    ],
)
def test_a_header_that_is_none_is_told(header):
    with pytest.raises(DeepenError):
        layout_of(header)
