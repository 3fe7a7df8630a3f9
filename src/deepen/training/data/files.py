"""Rows of local files, kind by kind."""

import csv
import gzip
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from deepen.common.bounded import MOST_BYTES, check_regular, parse_json
from deepen.common.errors import DeepenError

PIECE_CHARACTERS = 2**20
"""Longer documents are read and tokenised in pieces."""

_MOST_CHARACTERS = MOST_BYTES
"""Length of the longest line, field or JSON file: each is held as a whole."""


class Row(NamedTuple):
    """One row of a data set."""

    where: str
    """Where it stands, for errors."""
    columns: Mapping[str, Any]
    """Its columns; a row of a .txt file has the one column of the documents' text."""
    continued: bool | None = None
    """For a piece of a long document: whether the next row continues it."""


def kind_of(file: Path) -> str | None:
    """Return how a file is read, after its name in small letters; ``None`` if it is not."""
    name = file.name.lower()
    return next((suffix for suffix in KINDS if name.endswith(suffix)), None)


def file_rows(file: Path, text_column: str, separator: str | None) -> Iterator[Row]:
    """Read one file.

    Args:
        file: Of a kind that is read here; any other is read as a .txt file.
        text_column: The column that a .txt file's documents stand in.
        separator: What stands between them; ``None`` if the file is one document.

    Raises:
        DeepenError: It is damaged, no regular file, or holds something else than rows.
    """
    check_regular(file)
    read = KINDS[kind_of(file) or ".txt"]
    try:
        if read is None:
            yield from _text(file, text_column, separator)
        else:
            yield from read(file)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise DeepenError(f"{str(file)!r} is not readable UTF-8 text ({error}).") from None
    except OSError as error:
        raise DeepenError(f"{str(file)!r} cannot be read ({error.strerror or error}).") from None


def _open(file: Path) -> IO[str]:
    """Open a text file, compressed or not; line ends stay as they are, a byte order mark goes."""
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _lines(stream: IO[str], file: Path) -> Iterator[str]:
    """Read lines; each is held by whoever asks for it and nowhere else, for it may be large."""
    return iter(lambda: _line(stream, file), "")


def _line(stream: IO[str], file: Path) -> str:
    """Read one line, empty at the end of the file."""
    line = stream.readline(_MOST_CHARACTERS + 1)
    if len(line) > _MOST_CHARACTERS:
        raise DeepenError(
            f"{str(file)!r} has a line of more than {_MOST_CHARACTERS:,} characters; divide it."
        )
    return line


def _text(file: Path, column: str, separator: str | None) -> Iterator[Row]:
    """Read a text file: documents between separators, else one document in pieces of a megabyte."""
    with _open(file) as stream:
        rest, number, begun = "", 0, False
        while chunk := stream.read(PIECE_CHARACTERS):
            rest, begun = rest + chunk, True
            if separator:
                *documents, rest = rest.split(separator)
                for document in documents:
                    number += 1
                    yield Row(f"document {number} of {file.name}", {column: document})
            else:
                cut = good_cut(rest)
                yield Row(file.name, {column: rest[:cut]}, continued=True)
                rest = rest[cut:]
    if begun:
        last = None if separator else False
        yield Row(f"document {number + 1} of {file.name}", {column: rest}, continued=last)


def good_cut(text: str) -> int:
    """Return where to cut a text: behind its last line, else before its last word, else its end.

    Hardly any word is then torn. A space stays with the word that it stands before, as in most
    tokenizers.
    """
    line = text.rfind("\n") + 1
    return line or max(text.rfind(" "), 0) or len(text)


def pieces(text: str, *, ends: bool) -> Iterator[tuple[str, bool]]:
    """Cut a document into pieces: a tokenizer takes two hundred bytes for every character.

    Args:
        text: The document, or a piece of one.
        ends: Whether the document ends with it.

    Returns:
        Pieces, each with whether the document ends there.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = start + good_cut(text[start : start + PIECE_CHARACTERS])
        yield text[start:stop], False
        start = stop
    yield text[start:], ends


def _json_lines(file: Path) -> Iterator[Row]:
    """Read a file with one JSON object a line."""
    with _open(file) as stream:
        for number, line in enumerate(_lines(stream, file), start=1):
            if line.isspace():
                continue
            row, line = parse_json(line, f"Line {number} of {str(file)!r}"), ""
            yield _checked(f"line {number} of {file.name}", row)


def _json(file: Path) -> Iterator[Row]:
    """Read a JSON file that holds a list of objects."""
    with _open(file) as stream:
        text = stream.read(_MOST_CHARACTERS + 1)
    if len(text) > _MOST_CHARACTERS:
        raise DeepenError(
            f"{str(file)!r} is longer than {_MOST_CHARACTERS:,} characters; write a .jsonl, which "
            f"is read line by line."
        )
    content = parse_json(text, repr(str(file)))
    if not isinstance(content, list):
        raise DeepenError(f"{str(file)!r} does not hold a list of rows.")
    for number, row in enumerate(content, start=1):
        yield _checked(f"row {number} of {file.name}", row)


def _csv(file: Path) -> Iterator[Row]:
    """Read a CSV file (RFC 4180) whose first line names the columns."""
    csv.field_size_limit(_MOST_CHARACTERS)  # its own is 128 kB, shorter than many documents
    try:
        with _open(file) as stream:
            rows = csv.DictReader(_lines(stream, file), strict=True)
            for number, row in enumerate(rows, start=1):
                where = f"row {number} of {file.name}"
                # What stands beyond the named columns has no name, what is missing no value.
                if None in row or None in row.values():
                    raise DeepenError(
                        f"{capitalised(where)} has not as many fields as the first line names; "
                        f"put fields that hold commas or line ends in quotes."
                    )
                yield Row(where, row)
    except csv.Error as error:
        raise DeepenError(f"{str(file)!r} is not a sound CSV file ({error}).") from None


def _parquet(file: Path) -> Iterator[Row]:
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


KINDS: Mapping[str, Callable[[Path], Iterator[Row]] | None] = {
    ".txt": None,
    ".txt.gz": None,
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".ndjson": _json_lines,
    ".ndjson.gz": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".parquet": _parquet,
}
"""Ends of names → how such a file is read; ``None`` for plain text."""


def _checked(where: str, row: object) -> Row:
    """Insist on an object with columns."""
    if not isinstance(row, dict):
        raise DeepenError(f"{capitalised(where)} is not an object with columns.")
    return Row(where, row)


def capitalised(where: str) -> str:
    """Begin a sentence with a row's place."""
    return where[0].upper() + where[1:]


def said_of(value: object) -> str:
    """Say what a column holds instead of text."""
    for kind, words in ((bool, "true or false"), (int | float, "a number"), (list, "a list")):
        if isinstance(value, kind):
            return words
    return "an object" if isinstance(value, Mapping) else "no text"
