"""A model's loss on a text file: perplexity per token and bits per byte.

A ``.jsonl`` file holds one document per line, any other file is one document. A document is cut
into tokens as it stands, without special tokens. The first one is given; every later one is
predicted exactly once, in windows that do not overlap: a window takes ``sequence_length`` tokens in
and predicts each one's successor, so that a prediction sees at least one token and never more than
its window holds. Bytes are those of the predicted tokens' text: everything but the first token's.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deepen.base.registry.texts import text_file
from deepen.common.errors import DeepenError, DivergedError
from deepen.common.progress import Progress, silent
from deepen.records.evaluation import TextScore

FIELD = "text"
"""The key of a ``.jsonl`` line that holds the document."""

_NO_TARGET = -100


@dataclass(frozen=True)
class Text:
    """A text file as tokens."""

    file: str
    """The file's name."""
    sha256: str
    """Hash of its content."""
    documents: list[list[int]]
    """Token ids of each document, all with at least two."""
    text_bytes: int
    """UTF-8 bytes of the tokens that will be predicted."""

    @property
    def tokens(self) -> int:
        """Number of tokens that will be predicted."""
        return sum(len(ids) - 1 for ids in self.documents)


def read(file: Path, tokenizer: Any, max_tokens: int | None = None) -> Text:  # noqa: ANN401
    """Read a text file.

    Args:
        file: A ``.jsonl`` file, any other text in UTF-8, or ``registry:TEXT/PART``.
        tokenizer: A fast tokenizer of transformers.
        max_tokens: Where to stop, in predicted tokens.

    Raises:
        DeepenError: It is missing, empty, not such a file, or too short to predict a token.
    """
    file = text_file(file)
    ids: list[list[int]] = []
    text_bytes, left = 0, math.inf if max_tokens is None else max_tokens
    try:
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        for document in _documents(file):
            if left < 1:
                break
            tokens, nbytes = _tokens(document, tokenizer, left)
            if len(tokens) > 1:
                ids.append(tokens)
                text_bytes += nbytes
                left -= len(tokens) - 1
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DeepenError(f"The text {str(file)!r} cannot be read ({reason}).") from None
    if not file.stat().st_size:
        raise DeepenError(f"The text {str(file)!r} is empty; give one to predict.")
    if not ids:
        raise DeepenError(
            f"The text {str(file)!r} holds no document of at least 2 tokens, and the first one is "
            f"not predicted; give a longer text."
        )
    return Text(file.name, sha256, ids, text_bytes)


def score(
    module: Any,  # noqa: ANN401 (a class of transformers)
    text: Text,
    sequence_length: int,
    batch_size: int,
    *,
    progress: Progress = silent,
) -> TextScore:
    """Measure a causal language model's loss on a text.

    Raises:
        DivergedError: The loss is not finite.
    """
    total, done = 0.0, 0
    for inputs, targets in _batches(text, sequence_length, batch_size):
        progress(f"{text.file}: predicting", done / text.tokens)
        total += _loss(module, inputs, targets)
        done += int((targets != _NO_TARGET).sum())
    progress(f"{text.file}: predicting", 1.0)
    mean = total / text.tokens
    if not mean < 700:  # e^710 is no float64; NaN is not less than anything
        raise DivergedError(
            f"The model's loss on {text.file!r} is {mean} nats per token; its weights are broken."
        )
    return TextScore(
        file=text.file,
        sha256=text.sha256,
        tokens=text.tokens,
        text_bytes=text.text_bytes,
        loss_nats_per_token=mean,
        token_perplexity=math.exp(mean),
        bits_per_byte=total / math.log(2) / text.text_bytes,
    )


def _documents(file: Path) -> Iterator[str]:
    """Yield a file's documents."""
    if file.suffix != ".jsonl":
        yield file.read_text(encoding="utf-8")
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                document = row[FIELD]
            except ValueError:
                raise DeepenError(f"Line {number} of {str(file)!r} is not JSON.") from None
            except (KeyError, TypeError):
                keys = ", ".join(row) if isinstance(row, dict) else "no object"
                raise DeepenError(
                    f"Line {number} of {str(file)!r} has no {FIELD!r} (it has {keys}); rename the "
                    f"key that holds the text."
                ) from None
            if not isinstance(document, str):
                raise DeepenError(f"{FIELD!r} in line {number} of {str(file)!r} is not a string.")
            yield document


def _tokens(document: str, tokenizer: Any, left: float) -> tuple[list[int], int]:  # noqa: ANN401
    """Cut a document into tokens, and count the bytes of those that will be predicted."""
    if not tokenizer.is_fast:
        raise DeepenError(
            "The tokenizer does not say which text a token stands for, so bytes cannot be counted; "
            "give the model a fast one (tokenizer.json)."
        )
    encoded = tokenizer(document, add_special_tokens=False, verbose=False)
    ids: list[int] = encoded["input_ids"]
    if len(ids) < 2:
        return ids, 0
    # A character that is split between the first two tokens counts as predicted.
    first, second = encoded.token_to_chars(0), encoded.token_to_chars(1)
    start, end = min(first.end, second.start), len(document)
    if len(ids) - 1 > left:
        ids = ids[: int(left) + 1]
        end = encoded.token_to_chars(len(ids) - 1).end
    return ids, len(document[start:end].encode())


def _batches(text: Text, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets ``[batch, length]``, long windows first to waste little."""
    windows = [
        ids[start : start + length + 1]
        for ids in text.documents
        for start in range(0, len(ids) - 1, length)
    ]
    windows.sort(key=len, reverse=True)
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        width = len(batch[0]) - 1
        # What stands to the right of a sequence cannot change it, so that any token fills up.
        inputs = [ids[:-1] + ids[-1:] * (width - len(ids) + 1) for ids in batch]
        targets = [ids[1:] + [_NO_TARGET] * (width - len(ids) + 1) for ids in batch]
        yield torch.tensor(inputs), torch.tensor(targets)


@torch.no_grad()
def _loss(module: Any, inputs: Tensor, targets: Tensor) -> float:  # noqa: ANN401
    """Return the sum of a batch's losses in nats."""
    logits = module(inputs.to(module.device), use_cache=False).logits
    # Sequence by sequence: logits of a whole batch in float32 may not fit.
    return sum(
        float(
            cross_entropy(
                row.float(), target.to(row.device), ignore_index=_NO_TARGET, reduction="none"
            )
            .double()
            .sum()
        )
        for row, target in zip(logits, targets, strict=True)
    )
