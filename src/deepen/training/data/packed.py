"""Pre-training data: documents and end-of-text tokens, packed into sequences of equal length.

The tokens are written once to a file, which is mapped from then on: any sequence is reached at
once, so that the order is free, a resumed run is where it was, and no memory grows with the data.
Sequences cross the borders of documents, and attention does too, as in the paper's training. Each
begins with what the tokenizer puts in front of a text (BOS), if it does.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deepen.base.text import opening
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress, Tell, unheard
from deepen.training.data.cache import cached, key_of
from deepen.training.data.files import (
    PIECE_CHARACTERS,
    Row,
    capitalised,
    pieces,
    said_of,
)
from deepen.training.data.rows import rows
from deepen.training.recipe import DataConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DTYPE = np.dtype("<u4")
_CHARACTERS_AT_ONCE = PIECE_CHARACTERS
_IGNORED = -100


class PackedSequences(Dataset[dict[str, Tensor]]):
    """Sequences of one length in a file of tokens."""

    def __init__(
        self, file: Path, tokens: int, sequence_length: int, opening: Sequence[int] = ()
    ) -> None:
        """Map the file; what is left over at the end is not used.

        Args:
            file: The tokens.
            tokens: How many there are.
            sequence_length: Tokens of a sequence, those of the opening among them.
            opening: What every sequence begins with.
        """
        self._tokens = np.memmap(file, _DTYPE, "r", shape=(tokens,))
        self._opening = np.array(opening, np.int64)
        self._own = sequence_length - len(opening)
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        """Return the number of whole sequences."""
        return len(self._tokens) // self._own

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sequence; its first token cannot be predicted and has no label."""
        own = self._tokens[index * self._own : (index + 1) * self._own]
        ids = torch.from_numpy(np.concatenate([self._opening, own.astype(np.int64)]))
        labels = ids.clone()
        labels[: max(1, len(self._opening))] = _IGNORED
        return {"input_ids": ids, "labels": labels}

    def digest(self) -> str:
        """Return the SHA-256 of all tokens, the opening first."""
        digest = hashlib.sha256(self._opening.astype(_DTYPE).data)
        digest.update(self._tokens.data)
        return digest.hexdigest()


def load_packed(
    data: DataConfig,
    training: TrainingConfig,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    progress: Progress,
    tell: Tell = unheard,
) -> PackedSequences:
    """Read, tokenise and pack a data set, or find the tokens of an earlier run.

    Args:
        data: Which data; its seed is set.
        training: Its budget says how much of a streamed data set is read.
        tokenizer: The model's.
        folder: Where the tokens are kept.
        progress: Called as tokens are written; a share is only known for streamed data.
        tell: Called with what was left out.

    Raises:
        DeepenError: The data are missing or damaged, or do not fill one sequence.
    """
    assert data.seed is not None
    if tokenizer.eos_token_id is None:
        raise DeepenError(
            "The tokenizer has no end-of-text token, which separates documents; set eos_token in "
            "the checkpoint's tokenizer_config.json."
        )
    limit = _needed(data, training) if data.streaming else None
    seed = data.seed if data.streaming else None

    def write(file: Path) -> Mapping[str, Any]:
        return _write_tokens(data, tokenizer, file, limit, progress)

    key = key_of(data.model_copy(update={"sequence_length": 1}), tokenizer, seed=seed, limit=limit)
    file, facts = cached(folder, f"tokens-{key}", ".bin", write)
    tokens = facts["tokens"]
    if facts.get("nulls"):
        tell(
            f"Left out {facts['nulls']:,} rows of {data.path!r} with null in column "
            f"{data.text_column!r}."
        )
    begins = opening(tokenizer)
    if len(begins) >= data.sequence_length:
        raise DeepenError(
            f"A sequence of {data.sequence_length} tokens holds no text behind the {len(begins)} "
            f"special ones that the tokenizer puts in front; raise data.sequence_length."
        )
    if tokens + len(begins) < data.sequence_length:
        raise DeepenError(
            f"The data set {data.path!r} (data) holds {tokens} tokens, fewer than one "
            f"sequence of {data.sequence_length}; give more text or a smaller data.sequence_length."
        )
    return PackedSequences(file, tokens, data.sequence_length, begins)


def _needed(data: DataConfig, training: TrainingConfig) -> int | None:
    """Return the tokens that the budget needs; ``None`` if it is counted in epochs."""
    if training.max_steps:
        return training.max_steps * training.batch_size * data.sequence_length
    return training.max_tokens


def _write_tokens(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    file: Path,
    limit: int | None,
    progress: Progress,
) -> Mapping[str, int]:
    """Write the tokens of a data set; return their number and that of rows without any text.

    Raises:
        DeepenError: There is no text at all.
    """
    assert data.seed is not None
    written, nulls = 0, 0

    def read() -> Iterator[tuple[str, bool]]:
        nonlocal nulls
        for row in rows(data, data.seed or 0):
            text = _text_of(row, data.text_column)
            nulls += text is None
            if text or row.continued is not None:
                yield from pieces(text or "", ends=not row.continued)

    with file.open("wb") as stream:
        for texts in _batches(read()):
            for ids in _encoded(texts, tokenizer):
                stream.write(ids.tobytes())
                written += len(ids)
            share = min(1.0, written / limit) if limit else 0.0
            progress(f"data: {written:,} tokens", share)
            if limit and written >= limit:
                break
    if not written:
        raise DeepenError(
            f"The data set {data.path!r} (data) holds no text; check the file and text_column."
        )
    progress(f"data: {written:,} tokens", 1.0)
    return {"tokens": written, "nulls": nulls}


def _encoded(
    texts: Sequence[tuple[str, bool]], tokenizer: "PreTrainedTokenizerBase"
) -> list[NDArray[np.uint32]]:
    """Tokenise pieces, with an end-of-text token where a document ends."""
    encoded = tokenizer(
        [text for text, _ in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        np.asarray(ids + end if ends else ids, _DTYPE)
        for ids, (_, ends) in zip(encoded, texts, strict=True)
    ]


def _batches(texts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Collect pieces of text, no more than a tokenizer has memory for."""
    batch: list[tuple[str, bool]] = []
    characters = 0
    for piece in texts:
        characters += len(piece[0])
        if batch and characters > _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], len(piece[0])
        batch.append(piece)
    if batch:
        yield batch


def _text_of(row: Row, column: str) -> str | None:
    """Return a row's text; ``None`` where the file says null.

    Raises:
        DeepenError: The row has no such column, or holds something else in it.
    """
    if column not in row.columns:
        names = ", ".join(row.columns)
        has = f"its columns: {names}" if names else "it has no columns at all"
        raise DeepenError(
            f"{capitalised(row.where)} has no column {column!r} ({has}); set data.text_column."
        )
    text = row.columns[column]
    if text is not None and not isinstance(text, str):
        raise DeepenError(
            f"{capitalised(row.where)} holds {said_of(text)} in column {column!r}, where the text "
            f"of a document is read from; set data.text_column or mend the row."
        )
    return text
