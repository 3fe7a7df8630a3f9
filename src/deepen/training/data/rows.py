"""Rows of local files and hub data sets, one at a time."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deepen.base.registry.texts import text_file
from deepen.common.errors import DeepenError
from deepen.training.data.files import KINDS, Row, file_rows, kind_of
from deepen.training.recipe import DataConfig

_BUFFERED_ROWS = 10_000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_files(data: DataConfig) -> list[Path]:
    """List the local files of a data set, sorted; empty if it is one of the hub.

    Raises:
        DeepenError: A file is missing or of a kind that is not read here.
    """
    paths = [data.path] if isinstance(data.path, str) else data.path
    files: list[Path] = []
    for path in map(text_file, paths):
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if kind_of(f) and not _hidden(f, path))
            if not inside:
                raise DeepenError(f"Folder {str(path)!r} (data) holds no {', '.join(KINDS)} files.")
            files += inside
        elif not path.exists():
            if len(paths) == 1 and _is_hub_id(str(path)):
                return []
            raise DeepenError(f"There is no file {str(path)!r} (data); check the path.")
        elif kind_of(path) is None:
            raise DeepenError(
                f"{str(path)!r} (data) is of no kind that is read here; give one of "
                f"{', '.join(KINDS)}."
            )
        else:
            files.append(path)
    return files


def _is_hub_id(path: str) -> bool:
    """Whether a path that does not exist may be meant for the hub."""
    return bool(_HUB_ID.fullmatch(path)) and kind_of(Path(path)) is None


def _hidden(file: Path, folder: Path) -> bool:
    """Whether a file in a folder was put there by a program: macOS' ``._`` files, checkpoints."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


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
    read = (row for file in files for row in file_rows(file, data.text_column, data.separator))
    yield from _shuffled(read, random) if data.streaming else read


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
