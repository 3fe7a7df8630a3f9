"""The text of a scan as sequences of equal length, every other one of which chooses."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.evaluation import perplexity
from deepen.records.scan import ScanRequest

LEAST = 8
"""Sequences, four of which choose and four confirm."""
_LEAST_OWN = 2  # tokens of the text in a sequence; the first of them is not predicted


@dataclass(frozen=True)
class Sequences:
    """A text, as a scan reads it."""

    name: str
    """What to call it."""
    sha256: str
    """Hash of all of it."""
    tokens: Tensor
    """Ids ``[sequences, length]``, each behind the opening, in the order of the text."""
    opening: int
    """How many tokens the tokenizer puts in front of every text."""

    @property
    def given(self) -> int:
        """How many tokens at the beginning of a sequence are not predicted."""
        return self.opening + 1

    @property
    def predicted(self) -> int:
        """Number of tokens that are predicted, in all."""
        sequences, length = self.tokens.shape
        return sequences * (length - self.given)


def read_sequences(base: Model, file: str, request: ScanRequest) -> Sequences:
    """Cut a text into sequences, none over two documents; what does not fill one is left out.

    Args:
        base: The model, whose tokenizer reads the text.
        file: A text in UTF-8, a file of documents, or ``registry:TEXT/PART``.
        request: How long sequences are, and how many tokens they may hold together.

    Raises:
        DeepenError: It cannot be read, holds chats, or is too short; sequences are longer than the
            model has positions; or it has no tokenizer.
    """
    length, positions = request.sequence_length, base.positions
    if positions is not None and length > positions:
        raise DeepenError(
            f"--sequence-length is {length}, but {base.source.name} has only {positions} "
            f"positions; ask for no more than that."
        )
    # Documents are longer than what is taken of them: ends that fill no sequence are left out.
    read = perplexity.read(Path(file), base.tokenizer(), 4 * request.max_tokens)
    if read.labels is not None:
        raise DeepenError(
            f"The text {file!r} holds chats, and a scan reads documents; give a text of those."
        )
    begins = list(read.opening)
    own = length - len(begins)
    if own < _LEAST_OWN:
        raise DeepenError(f"A sequence of {length} tokens has no room for text; give longer ones.")
    cut = [
        begins + document[start : start + own].tolist()
        for document in read.documents
        for start in range(0, len(document) - own + 1, own)
    ][: request.max_tokens // length]
    if len(cut) < LEAST:
        raise DeepenError(
            f"The text {file!r} fills {len(cut)} sequences of {length} tokens, and a scan needs "
            f"{LEAST}, half to choose and half to confirm; give a longer text, a larger "
            f"--max-tokens or a smaller --sequence-length."
        )
    return Sequences(read.file, read.sha256, torch.tensor(cut), len(begins))
