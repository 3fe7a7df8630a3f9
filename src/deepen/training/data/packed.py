"""Pre-training data: documents and end-of-text tokens, packed into sequences of equal length.

The tokens are written once to a file, which is mapped from then on: any sequence is reached at
once, so that the order is free, a resumed run is where it was, and no memory grows with the data.
Sequences cross the borders of documents, and attention does too, as in the paper's training.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepen.common.errors import DeepenError
from deepen.common.progress import Progress
from deepen.training.data.cache import cached, key_of
from deepen.training.data.rows import Row, capitalised, rows
from deepen.training.recipe import DataConfig, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DTYPE = np.dtype("<u4")
_CHARACTERS_AT_ONCE = 2**21
_IGNORED = -100


class PackedSequences(Dataset[dict[str, Tensor]]):
    """Sequences of one length in a file of tokens."""

    def __init__(self, file: Path, tokens: int, sequence_length: int) -> None:
        """Map the file; what is left over at the end is not used."""
        self._tokens = np.memmap(file, _DTYPE, "r", shape=(tokens,))
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        """Return the number of whole sequences."""
        return len(self._tokens) // self.sequence_length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sequence; its first token cannot be predicted and has no label."""
        start = index * self.sequence_length
        ids = torch.from_numpy(self._tokens[start : start + self.sequence_length].astype(np.int64))
        labels = ids.clone()
        labels[0] = _IGNORED
        return {"input_ids": ids, "labels": labels}

    def digest(self) -> str:
        """Return the SHA-256 of all tokens."""
        return hashlib.sha256(self._tokens.data).hexdigest()


def load_packed(
    data: DataConfig,
    training: TrainingConfig,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    progress: Progress,
) -> PackedSequences:
    """Read, tokenise and pack a data set, or find the tokens of an earlier run.

    Args:
        data: Which data; its seed is set.
        training: Its budget says how much of a streamed data set is read.
        tokenizer: The model's.
        folder: Where the tokens are kept.
        progress: Called as tokens are written; a share is only known for streamed data.

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
        return {"tokens": _write_tokens(data, tokenizer, file, limit, progress)}

    key = key_of(data.model_copy(update={"sequence_length": 1}), tokenizer, seed=seed, limit=limit)
    file, facts = cached(folder, f"tokens-{key}", ".bin", write)
    tokens = facts["tokens"]
    if tokens < data.sequence_length:
        raise DeepenError(
            f"The data set {data.path!r} (data) holds {tokens} tokens, fewer than one "
            f"sequence of {data.sequence_length}; give more text or a smaller data.sequence_length."
        )
    return PackedSequences(file, tokens, data.sequence_length)


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
) -> int:
    """Write the tokens of a data set and return their number.

    Raises:
        DeepenError: There is no text at all.
    """
    assert data.seed is not None
    written = 0
    with file.open("wb") as stream:
        for texts in _batches(rows(data, data.seed), data.text_column):
            encoded = tokenizer(
                [text for text, _ in texts],
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            for ids, (_, ends) in zip(encoded, texts, strict=True):
                if ends:
                    ids.append(tokenizer.eos_token_id)
                stream.write(np.asarray(ids, _DTYPE).tobytes())
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
    return written


def _batches(read: Iterator[Row], column: str) -> Iterator[list[tuple[str, bool]]]:
    """Collect texts, each with whether its document ends there; empty documents are left out."""
    batch: list[tuple[str, bool]] = []
    characters = 0
    for row in read:
        text = _text_of(row, column)
        if not text and row.continued is None:
            continue
        batch.append((text, not row.continued))
        characters += len(text)
        if characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _text_of(row: Row, column: str) -> str:
    """Return a row's text.

    Raises:
        DeepenError: The row has none.
    """
    text = row.columns.get(column)
    if not isinstance(text, str):
        names = ", ".join(key for key, value in row.columns.items() if value is not None) or "none"
        raise DeepenError(
            f"{capitalised(row.where)} has no text in column {column!r} "
            f"(its columns: {names}); set text_column."
        )
    return text
