"""A model's loss on a text file: perplexity per token and bits per byte.

A ``.jsonl`` file holds one document or one chat per line, any other file is one document. Of chats
only the answers count (``deepen.evaluation.answers``); a chat is one window. A document is cut
into tokens as it stands, without special tokens. The first one is given; every later one is
predicted exactly once, in windows that do not overlap: a window takes ``sequence_length`` tokens in
and predicts each one's successor, so that a prediction sees at least one token and never more than
its window holds. Bytes are those of the predicted tokens' text: everything but the first token's.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deepen.base.registry.texts import text_file
from deepen.common.errors import DeepenError, DivergedError
from deepen.common.progress import Progress, silent
from deepen.evaluation.answers import TEXT, are_rows, counted, read_answers
from deepen.records.evaluation import TextScore
from deepen.training.data.chat import IGNORED

_MOST_EXPONENT = 709.0  # of what a double holds
_LEAST_FULL = 15 / 16  # of the longest window of a batch, for chats, whose lengths differ

Logits = Callable[[Tensor], Tensor]
"""Token ids ``[batch, length]`` → logits ``[batch, length, vocabulary]``."""


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
    labels: list[list[int]] | None = None
    """For chat rows, each token again if it is an answer's, else ``IGNORED``."""

    @property
    def tokens(self) -> int:
        """Number of tokens that will be predicted."""
        if self.labels is not None:
            return sum(map(counted, self.labels))
        return sum(len(ids) - 1 for ids in self.documents)


def read(
    file: Path,
    tokenizer: Any,  # noqa: ANN401 (a class of transformers)
    max_tokens: int | None = None,
    *,
    longest_chat: int = 2048,
) -> Text:
    """Read a text file.

    Args:
        file: A ``.jsonl`` file, any other text in UTF-8, or ``registry:TEXT/PART``.
        tokenizer: A fast tokenizer of transformers.
        max_tokens: Where to stop, in predicted tokens.
        longest_chat: Where a chat row is cut, in tokens.

    Raises:
        DeepenError: It is missing, empty, not such a file, or too short to predict a token.
    """
    file = text_file(file)
    try:
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        text = (
            _read_chats(file, sha256, tokenizer, max_tokens, longest_chat)
            if are_rows(file)
            else _read_documents(file, sha256, tokenizer, max_tokens)
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DeepenError(f"The text {str(file)!r} cannot be read ({reason}).") from None
    if not file.stat().st_size:
        raise DeepenError(f"The text {str(file)!r} is empty; give one to predict.")
    if text.labels is not None and not text.text_bytes:
        raise DeepenError(
            f"The chats in {str(file)!r} have no answer within {longest_chat} tokens; raise "
            f"sequence_length."
        )
    if not text.documents:
        raise DeepenError(
            f"The text {str(file)!r} holds no document of at least 2 tokens, and the first one is "
            f"not predicted; give a longer text."
        )
    return text


def _read_documents(file: Path, sha256: str, tokenizer: Any, max_tokens: int | None) -> Text:  # noqa: ANN401
    """Read documents, all of whose tokens count."""
    ids: list[list[int]] = []
    text_bytes, left = 0, math.inf if max_tokens is None else max_tokens
    for document in _documents(file):
        if left < 1:
            break
        tokens, nbytes = _tokens(document, tokenizer, left)
        if len(tokens) > 1:
            ids.append(tokens)
            text_bytes += nbytes
            left -= len(tokens) - 1
    return Text(file.name, sha256, ids, text_bytes)


def _read_chats(
    file: Path,
    sha256: str,
    tokenizer: Any,  # noqa: ANN401
    max_tokens: int | None,
    longest: int,
) -> Text:
    """Read chat rows, whose answers count."""
    _insist_on_offsets(tokenizer)
    read = list(read_answers(file, tokenizer, longest, max_tokens))
    ids, labels = [example.ids for example, _ in read], [example.labels for example, _ in read]
    return Text(file.name, sha256, ids, sum(nbytes for _, nbytes in read), labels)


def plain_logits(module: Any) -> Logits:  # noqa: ANN401 (a class of transformers)
    """Return what computes a module's logits."""
    return lambda inputs: module(inputs.to(module.device), use_cache=False).logits


def score(
    module: Any,  # noqa: ANN401 (a class of transformers)
    text: Text,
    sequence_length: int,
    batch_size: int,
    *,
    logits: Logits | None = None,
    progress: Progress = silent,
) -> TextScore:
    """Measure a causal language model's loss on a text.

    Args:
        module: The model.
        text: The text.
        sequence_length: Tokens in a window of a document.
        batch_size: Windows in a forward pass, at most.
        logits: What computes them, by default the module as it stands.
        progress: Called with the stage and the finished share of it.

    Raises:
        DivergedError: The loss is not finite.
    """
    total, done, logits = 0.0, 0, logits or plain_logits(module)
    for inputs, targets in _batches(text, sequence_length, batch_size):
        progress(f"{text.file}: predicting", done / text.tokens)
        total += _loss(logits, inputs, targets)
        done += int((targets != IGNORED).sum())
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
        token_perplexity=math.exp(mean) if mean < _MOST_EXPONENT else math.inf,
        bits_per_byte=total / math.log(2) / text.text_bytes,
        counted="all" if text.labels is None else "answers",
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
                document = row[TEXT]
            except ValueError:
                raise DeepenError(f"Line {number} of {str(file)!r} is not JSON.") from None
            except (KeyError, TypeError):
                keys = ", ".join(row) if isinstance(row, dict) else "no object"
                raise DeepenError(
                    f"Line {number} of {str(file)!r} has no {TEXT!r} (it has {keys}); rename the "
                    f"key that holds the text."
                ) from None
            if not isinstance(document, str):
                raise DeepenError(f"{TEXT!r} in line {number} of {str(file)!r} is not a string.")
            yield document


def _tokens(document: str, tokenizer: Any, left: float) -> tuple[list[int], int]:  # noqa: ANN401
    """Cut a document into tokens, and count the bytes of those that will be predicted."""
    _insist_on_offsets(tokenizer)
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


def _insist_on_offsets(tokenizer: Any) -> None:  # noqa: ANN401
    """Refuse a tokenizer that does not know where its tokens lie."""
    if not tokenizer.is_fast:
        raise DeepenError(
            "The tokenizer does not say which text a token stands for, so bytes cannot be counted; "
            "give the model a fast one (tokenizer.json)."
        )


def _batches(text: Text, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets ``[batch, length]``, long windows first to waste little."""
    for batch in _groups(text, length, batch_size):
        width = len(batch[0][0]) - 1
        # What stands to the right of a sequence cannot change it, so that any token fills up.
        inputs = [ids[:-1] + ids[-1:] * (width - len(ids) + 1) for ids, _ in batch]
        targets = [labels[1:] + [IGNORED] * (width - len(labels) + 1) for _, labels in batch]
        yield torch.tensor(inputs), torch.tensor(targets)


def _groups(
    text: Text, length: int, batch_size: int
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield windows, ids and labels, in groups of at most ``batch_size``."""
    if text.labels is None:
        windows = [
            (ids[start : start + length + 1],) * 2
            for ids in text.documents
            for start in range(0, len(ids) - 1, length)
        ]
    else:
        windows = list(zip(text.documents, text.labels, strict=True))
    windows.sort(key=lambda window: len(window[0]), reverse=True)
    least = 0.0 if text.labels is None else _LEAST_FULL
    group: list[tuple[list[int], list[int]]] = []
    for window in windows:
        if group and (
            len(group) == batch_size or len(window[0]) - 1 < least * (len(group[0][0]) - 1)
        ):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


@torch.no_grad()
def _loss(logits: Logits, inputs: Tensor, targets: Tensor) -> float:
    """Return the sum of a batch's losses in nats."""
    # Sequence by sequence: logits of a whole batch in float32 may not fit.
    return sum(
        float(
            cross_entropy(
                row.float(), target.to(row.device), ignore_index=IGNORED, reduction="none"
            )
            .double()
            .sum()
        )
        for row, target in zip(logits(inputs), targets, strict=True)
    )
