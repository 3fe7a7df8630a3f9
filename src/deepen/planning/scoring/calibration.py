"""The text that a model is scored on."""

import hashlib
import math
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import Tensor

from deepen.base.model import Model
from deepen.base.registry.texts import text_file
from deepen.base.text import PASSAGE, opening
from deepen.common.bounded import check_regular, parse_json
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of

_LEAST, _MOST, _LONGEST = 32, 1024, 256
"""Tokens of calibration, at least and at most; and of one sequence."""
_CHARACTERS = 2**16  # hold that many tokens in any language
_ROWS, _LONGEST_ROW = (".jsonl", ".ndjson"), 2**22


@dataclass(frozen=True)
class Calibration:
    """The text that blocks are scored on."""

    name: str
    """What to call it."""
    sha256: str
    """Hash of all of it."""
    tokens: Tensor
    """Ids ``[sequences, length]``, from its beginning on, each behind the opening."""
    opening: int
    """How many tokens the tokenizer puts in front of every text."""


def read_calibration(model: Model, file: str | None, *, sequences: int = 1) -> Calibration:
    """Read the beginning of a text as a model's tokens.

    Args:
        model: The model.
        file: A text in UTF-8, a file of documents (.jsonl), or ``registry:TEXT/PART``; by default
            the passage that ``verify`` reads.
        sequences: Into how many sequences it is cut at least.

    Raises:
        DeepenError: It cannot be read, is empty, is no text, or is too short; or the model has no
            tokenizer.
    """
    tokenizer = model.tokenizer()
    name, sha256, content = ("passage", _sha256(PASSAGE), PASSAGE) if file is None else _read(file)
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"][:_MOST]
    if len(ids) < _LEAST:
        raise DeepenError(
            f"The calibration text {name!r} has {len(ids)} tokens, and scores need {_LEAST} at "
            f"least; give a longer one."
        )
    begins = opening(tokenizer)
    longest = min(_LONGEST, model.positions or _LONGEST) - len(begins)
    sequences = max(sequences, math.ceil(len(ids) / longest))
    length = len(ids) // sequences
    own = torch.tensor(ids[: sequences * length]).view(sequences, -1)
    front = torch.tensor(begins, dtype=own.dtype).expand(sequences, -1)
    return Calibration(name, sha256, torch.cat([front, own], 1), len(begins))


def _read(file: str) -> tuple[str, str, str]:
    """Return a file's name, its SHA-256 and its beginning."""
    path = text_file(file)
    check_regular(path)
    try:
        sha256 = digest_of(path)
        with path.open(encoding="utf-8") as text:
            rows = path.suffix in _ROWS
            content = _documents(text, path.name) if rows else text.read(_CHARACTERS)
    except UnicodeDecodeError:
        raise DeepenError(
            f"The calibration text {file!r} is no text in UTF-8; give one that is."
        ) from None
    except OSError as error:
        raise DeepenError(
            f"The calibration text {file!r} cannot be read ({error.strerror})."
        ) from None
    if not content.strip():
        raise DeepenError(f"The calibration text {file!r} is empty; give one with words.")
    return path.name, sha256, content


def _documents(file: TextIO, name: str) -> str:
    """Read the documents at the beginning of a file of rows, one after the other.

    Raises:
        DeepenError: A row is no JSON, has no text, or is longer than all that could be read.
    """
    documents: list[str] = []
    left = _CHARACTERS
    while left > 0 and (line := file.readline(_LONGEST_ROW)):
        where = f"Row {len(documents) + 1} of {name!r}"
        if len(line) == _LONGEST_ROW:
            raise DeepenError(f"{where} is longer than {_LONGEST_ROW:,} characters; shorten it.")
        row = parse_json(line, where)
        document = row.get("text") if isinstance(row, dict) else None
        if not isinstance(document, str):
            raise DeepenError(
                f"{where} has no 'text', and blocks are scored on plain documents; give such a "
                f"file, or a text in UTF-8."
            )
        documents.append(document)
        left -= len(document)
    return "\n\n".join(documents)


def _sha256(text: str) -> str:
    """Return the hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
