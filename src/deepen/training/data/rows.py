"""Rows of local files and hub data sets, one at a time."""

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from deepen.base.registry.texts import text_file
from deepen.common.errors import DeepenError
from deepen.training.recipe import DataConfig

_READ_AT_ONCE = 2**20
_BUFFERED_ROWS = 10_000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".parquet")


class Row(NamedTuple):
    """One row of a data set."""

    where: str
    """Where it stands, for errors."""
    columns: Mapping[str, Any]
    """Its columns; a row of a .txt file has the one column of the documents' text."""
    continued: bool | None = None
    """For a piece of a long document: whether the next row continues it."""


def local_files(data: DataConfig) -> list[Path]:
    """List the local files of a data set, sorted; empty if it is one of the hub.

    Raises:
        DeepenError: A file is missing or of a kind that is not read here.
    """
    paths = [data.path] if isinstance(data.path, str) else data.path
    files: list[Path] = []
    for path in map(text_file, paths):
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if f.name.endswith(_SUFFIXES))
            if not inside:
                raise DeepenError(
                    f"Folder {str(path)!r} (data) holds no {', '.join(_SUFFIXES)} files."
                )
            files += inside
        elif not path.exists():
            if len(paths) == 1 and _is_hub_id(str(path)):
                return []
            raise DeepenError(f"There is no file {str(path)!r} (data); check the path.")
        elif not path.name.endswith(_SUFFIXES):
            raise DeepenError(
                f"{str(path)!r} (data) is of no kind that is read here; give one of "
                f"{', '.join(_SUFFIXES)}."
            )
        else:
            files.append(path)
    return files


def _is_hub_id(path: str) -> bool:
    """Whether a path that does not exist may be meant for the hub."""
    return bool(_HUB_ID.fullmatch(path)) and not path.endswith(_SUFFIXES)


def rows(data: DataConfig, seed: int) -> Iterator[Row]:
    """Read a data set row by row.

    Args:
        data: Which one.
        seed: Of the shuffle buffer, if the data set is streamed.

    Raises:
        DeepenError: A file or row is damaged, or the data set is not to be had.
    """
    files = local_files(data)
    if not files:
        yield from _hub_rows(data, seed)
        return
    random = np.random.default_rng(seed)
    if data.streaming:
        files = [files[i] for i in random.permutation(len(files))]
    read = (row for file in files for row in _file_rows(file, data))
    yield from _shuffled(read, random) if data.streaming else read


def _file_rows(file: Path, data: DataConfig) -> Iterator[Row]:
    """Read one file."""
    kind = Path(file.name.removesuffix(".gz")).suffix
    reader = {".txt": _text, ".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}[kind]
    try:
        yield from reader(file, data)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise DeepenError(f"{str(file)!r} is not readable UTF-8 text ({error}).") from None
    except OSError as error:
        raise DeepenError(f"{str(file)!r} cannot be read ({error.strerror or error}).") from None


def _open(file: Path) -> IO[str]:
    """Open a text file, compressed or not; line ends stay as they are."""
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8", newline="")
    return file.open(encoding="utf-8", newline="")


def _text(file: Path, data: DataConfig) -> Iterator[Row]:
    """Read a text file: documents between separators, else one document in pieces of a megabyte.

    A piece ends at the end of a line where it can, so that hardly any word is torn.
    """
    with _open(file) as stream:
        rest, number, column, begun = "", 0, data.text_column, False
        while chunk := stream.read(_READ_AT_ONCE):
            rest, begun = rest + chunk, True
            if data.separator:
                *documents, rest = rest.split(data.separator)
                for document in documents:
                    number += 1
                    yield Row(f"document {number} of {file.name}", {column: document})
            else:
                cut = rest.rfind("\n") + 1 or len(rest)
                yield Row(file.name, {column: rest[:cut]}, continued=True)
                rest = rest[cut:]
    if begun:
        last = None if data.separator else False
        yield Row(f"document {number + 1} of {file.name}", {column: rest}, continued=last)


def _json_lines(file: Path, data: DataConfig) -> Iterator[Row]:
    """Read a file with one JSON object a line."""
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _checked(f"line {number} of {file.name}", _load(line, file, number))


def _load(line: str, file: Path, number: int) -> object:
    """Read one line of JSON."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise DeepenError(f"Line {number} of {str(file)!r} is not JSON ({error}).") from None


def _json(file: Path, data: DataConfig) -> Iterator[Row]:
    """Read a JSON file that holds a list of objects."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeepenError(f"{str(file)!r} is not JSON ({error}); is it a .jsonl?") from None
    if not isinstance(content, list):
        raise DeepenError(f"{str(file)!r} does not hold a list of rows.")
    for number, row in enumerate(content, start=1):
        yield _checked(f"row {number} of {file.name}", row)


def _parquet(file: Path, data: DataConfig) -> Iterator[Row]:
    """Read a parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        table, number = parquet.ParquetFile(file), 0
        for batch in table.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"row {number} of {file.name}", row)
    except pyarrow.ArrowException as error:
        raise DeepenError(f"{str(file)!r} is not a sound parquet file ({error}).") from None


def _checked(where: str, row: object) -> Row:
    """Insist on an object with columns."""
    if not isinstance(row, dict):
        raise DeepenError(f"{capitalised(where)} is not an object with columns.")
    return Row(where, row)


def capitalised(where: str) -> str:
    """Begin a sentence with a row's place."""
    return where[0].upper() + where[1:]


def _hub_rows(data: DataConfig, seed: int) -> Iterator[Row]:
    """Read a hub data set."""
    import datasets

    assert isinstance(data.path, str)
    try:
        loaded: Any = datasets.load_dataset(
            data.path,
            data.name,
            split=data.split,
            revision=data.revision,
            streaming=data.streaming,
        )
    except Exception as error:  # a dozen types, from the hub's client and from datasets
        reason = " ".join(str(error).split())
        raise DeepenError(
            f"{data.path!r} (data) is neither a file here nor a hub data set that can be had "
            f"({reason})."
        ) from None
    if data.streaming:
        loaded = loaded.shuffle(seed=seed, buffer_size=_BUFFERED_ROWS)
    for number, row in enumerate(loaded, start=1):
        yield Row(f"row {number} of {data.path}", row)


def _shuffled(read: Iterable[Row], random: np.random.Generator) -> Iterator[Row]:
    """Shuffle rows through a buffer; pieces of one text stay in order."""
    buffer: list[Row] = []
    for row in read:
        if row.continued is not None:
            yield row
            continue
        if len(buffer) < _BUFFERED_ROWS:
            buffer.append(row)
            continue
        place = int(random.integers(len(buffer)))
        yield buffer[place]
        buffer[place] = row
    for place in random.permutation(len(buffer)):
        yield buffer[place]
