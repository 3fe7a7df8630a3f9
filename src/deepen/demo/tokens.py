"""From texts to token sequences: a byte-level BPE of the corpus' own, and packing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepen.demo.corpus import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_DOCUMENT = "<|endoftext|>"


@dataclass(frozen=True)
class Tokens:
    """The corpus as sequences of equal length, ``[sequences, tokens]`` each."""

    training: Tensor
    """In the order in which they are trained on."""
    held_out: Tensor
    """In a fixed order too, so that the first few are a sample of all."""

    def batch_order(self, first: int, count: int) -> Tensor:
        """Return training sequences from position ``first`` on, starting over at the end."""
        return self.training[torch.arange(first, first + count) % len(self.training)]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE; equal texts give an equal tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_DOCUMENT)


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 (transformers decides on the class)
    """Load a checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokenize(corpus: Corpus, tokenizer: Any, length: int, seed: int) -> Tokens:  # noqa: ANN401
    """Pack a corpus into sequences.

    Args:
        corpus: The documents.
        tokenizer: A fast tokenizer.
        length: Tokens in a sequence.
        seed: Decides the order of documents and of sequences.
    """
    generator = torch.Generator().manual_seed(seed)
    return Tokens(
        pack(corpus.training, tokenizer, length, generator),
        pack(corpus.held_out, tokenizer, length, generator),
    )


def pack(
    texts: Sequence[str],
    tokenizer: Any,  # noqa: ANN401
    length: int,
    generator: torch.Generator,
) -> Tensor:
    """Join documents, each with the token that ends it, and cut them into equal sequences.

    Documents are shuffled before they are joined and sequences after they are cut; the remainder
    that fills no sequence is dropped.

    Returns:
        Token ids ``[sequences, length]``.
    """
    order = torch.randperm(len(texts), generator=generator).tolist()
    # The tokenizer proper, because its wrapper warns of documents longer than a sequence.
    documents = tokenizer.backend_tokenizer.encode_batch([texts[index] for index in order])
    end = tokenizer.eos_token_id
    ids = torch.tensor([token for document in documents for token in (*document.ids, end)])
    count = len(ids) // length
    sequences = ids[: count * length].view(count, length)
    return sequences[torch.randperm(count, generator=generator)]


def bytes_per_token(tokenizer: Any) -> Tensor:  # noqa: ANN401
    """Return how many bytes of text each token stands for, ``[vocabulary]``.

    A byte-level BPE writes every byte as one character, and special tokens stand for no text.
    """
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    return torch.tensor([0 if name in special else len(name) for name in names])
