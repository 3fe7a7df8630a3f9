"""A model's loss on a text file: perplexity per token and bits per byte.

Files are read as training reads them (``deepen.training.data.files``): rows hold a document or a
chat each, any other file is one document. Of chats only the answers count
(``deepen.evaluation.answers``); a chat is one window. A document is cut into tokens as it stands,
long ones in pieces. The first one is given; every later one is predicted exactly once, in windows
that do not overlap: a window begins with what the tokenizer puts in front of a text (BOS, or
nothing), takes ``sequence_length`` tokens in with that, and predicts each other one's successor, so
that a prediction sees at least one token and never more than its window holds. Bytes
are those of the predicted tokens' text: everything but the first token's.
"""

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from deepen.base.registry.texts import text_file
from deepen.base.text import opening
from deepen.common.bounded import check_regular
from deepen.common.errors import DeepenError, DivergedError
from deepen.common.files import digest_of
from deepen.common.progress import Progress, silent
from deepen.evaluation.answers import TEXT, are_rows, counted, read_answers
from deepen.records.evaluation import TextScore
from deepen.training.data.chat import IGNORED
from deepen.training.data.files import Row, capitalised, file_rows, pieces, said_of

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
    documents: "list[array[int]]"
    """Token ids of each document, all with at least two; lists would take nine times the memory."""
    text_bytes: int
    """UTF-8 bytes of the tokens that will be predicted."""
    labels: "list[array[int]] | None" = None
    """For chat rows, each token again if it is an answer's, else ``IGNORED``."""
    opening: tuple[int, ...] = ()
    """What stands before every window of a document."""

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
        file: A file of rows, any other text in UTF-8, or ``registry:TEXT/PART``.
        tokenizer: A fast tokenizer of transformers.
        max_tokens: Where to stop, in predicted tokens.
        longest_chat: Where a chat row is cut, in tokens.

    Raises:
        DeepenError: It is missing, empty, not such a file, or too short to predict a token.
    """
    file = text_file(file)
    check_regular(file)
    try:
        sha256 = digest_of(file)
        text = (
            _read_chats(file, sha256, tokenizer, max_tokens, longest_chat)
            if are_rows(file)
            else _read_documents(file, sha256, tokenizer, max_tokens)
        )
    except OSError as error:
        raise DeepenError(f"The text {str(file)!r} cannot be read ({error.strerror}).") from None
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
    _insist_on_offsets(tokenizer)
    ids: list[array[int]] = []
    text_bytes, left = 0, math.inf if max_tokens is None else max_tokens
    for document in _documents(file):
        if left < 1:
            break
        tokens, nbytes = _tokens(document, tokenizer, left)
        if len(tokens) > 1:
            ids.append(tokens)
            text_bytes += nbytes
            left -= len(tokens) - 1
    return Text(file.name, sha256, ids, text_bytes, opening=tuple(opening(tokenizer)))


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
    ids = [array("i", example.ids) for example, _ in read]
    labels = [array("i", example.labels) for example, _ in read]
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


def _documents(file: Path) -> Iterator[Iterator[str]]:
    """Yield a file's documents, each in pieces; rows with null have none."""
    read = file_rows(file, TEXT, None)
    for row in read:
        yield _pieces_of(row, read)


def _pieces_of(row: Row, later: Iterator[Row]) -> Iterator[str]:
    """Yield the document that begins with a row, in pieces."""
    for part in chain([row], later):
        yield from (piece for piece, _ in pieces(_text_of(part), ends=True))
        if not part.continued:
            return


def _text_of(row: Row) -> str:
    """Return a row's text; nothing where the file says null.

    Raises:
        DeepenError: The row has none.
    """
    if TEXT not in row.columns:
        names = ", ".join(row.columns) or "no columns at all"
        raise DeepenError(
            f"{capitalised(row.where)} has no {TEXT!r} (it has {names}); rename the column that "
            f"holds the text."
        )
    text = row.columns[TEXT]
    if text is not None and not isinstance(text, str):
        raise DeepenError(
            f"{capitalised(row.where)} holds {said_of(text)} in {TEXT!r}, where the text of a "
            f"document is read from; mend the row."
        )
    return text or ""


def _tokens(document: Iterator[str], tokenizer: Any, left: float) -> "tuple[array[int], int]":  # noqa: ANN401
    """Cut a document into tokens, and count the bytes of those that will be predicted."""
    ids, nbytes = array("i"), 0
    for piece in document:
        encoded = tokenizer(piece, add_special_tokens=False, verbose=False)
        found = encoded["input_ids"]
        taken = int(min(len(found), left + 1 - len(ids)))
        start = 0 if ids else _second(piece, encoded, len(found))
        end = len(piece) if taken == len(found) else encoded.token_to_chars(taken - 1).end
        ids.extend(found[:taken])
        nbytes += len(piece[start:end].encode())
        if len(ids) > left:
            break
    return ids, nbytes


def _second(piece: str, encoded: Any, tokens: int) -> int:  # noqa: ANN401
    """Return where the text of all tokens but the first begins.

    A character that is split between the first two counts as the second's.
    """
    if not tokens:
        return len(piece)
    end: int = encoded.token_to_chars(0).end
    return min(end, encoded.token_to_chars(1).start) if tokens > 1 else end


def _insist_on_offsets(tokenizer: Any) -> None:  # noqa: ANN401
    """Refuse a tokenizer that does not know where its tokens lie."""
    if not tokenizer.is_fast:
        raise DeepenError(
            "The tokenizer does not say which text a token stands for, so bytes cannot be counted; "
            "give the model a fast one (tokenizer.json)."
        )


def _batches(text: Text, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets ``[batch, length]``, long windows first to waste little."""
    ignored = array("i", [IGNORED])
    for batch in _groups(text, length, batch_size):
        width = len(batch[0][0]) - 1
        # What stands to the right of a sequence cannot change it, so that any token fills up.
        inputs = [ids[:-1] + ids[-1:] * (width - len(ids) + 1) for ids, _ in batch]
        targets = [labels[1:] + ignored * (width - len(labels) + 1) for _, labels in batch]
        yield torch.tensor(inputs), torch.tensor(targets)


def _groups(
    text: Text, length: int, batch_size: int
) -> "Iterator[list[tuple[array[int], array[int]]]]":
    """Yield windows, ids and labels, in groups of at most ``batch_size``."""
    if text.labels is None:
        begins = array("i", text.opening)
        given, own = array("i", [IGNORED] * (len(begins) + 1)), max(1, length - len(begins))
        windows = [
            (begins + ids[start : start + own + 1], given + ids[start + 1 : start + own + 1])
            for ids in text.documents
            for start in range(0, len(ids) - 1, own)
        ]
    else:
        windows = list(zip(text.documents, text.labels, strict=True))
    windows.sort(key=lambda window: len(window[0]), reverse=True)
    least = 0.0 if text.labels is None else _LEAST_FULL
    group: list[tuple[array[int], array[int]]] = []
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
