"""The files that a base of the demo's own is made of: texts, a tokenizer, an untrained model."""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.common.errors import DeepenError
from deepen.common.progress import Progress
from deepen.demo.corpus import Corpus
from deepen.demo.recipe import SmallBase
from deepen.growth.staging import staged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_DOCUMENT = "<|endoftext|>"
_KEY = "key.txt"


class Material:
    """Where the files lie."""

    def __init__(self, folder: Path) -> None:
        """Name the files below a folder; make none."""
        self.folder = folder
        self.training = folder / "python-training.jsonl"
        self.held_out = folder / "python-held-out.jsonl"
        self.untrained = folder / "untrained"


def prepare(folder: Path, recipe: SmallBase, corpus: Corpus, progress: Progress) -> Material:
    """Make the files, unless an earlier run made the same ones.

    Args:
        folder: Where they go; it appears when all are there.
        recipe: The numbers.
        corpus: The texts.
        progress: Called with the stage and the finished share of it.

    Raises:
        DeepenError: Something else lies in the folder.
    """
    key = _key(recipe, corpus)
    marker = folder / _KEY
    if marker.is_file() and marker.read_text(encoding="utf-8") == key:
        return Material(folder)
    if folder.exists() and not marker.is_file():
        raise DeepenError(
            f"{str(folder)!r} was not made by the demo, which will not replace it; "
            f"give the demo another folder."
        )
    if folder.exists():
        shutil.rmtree(folder)
    progress("tokenizer", 0.0)
    with staged(folder, {"key": key}, 2**24, resume=False, overwrite=True) as staging:
        made = Material(staging)
        _write_texts(made.training, corpus.training)
        _write_texts(made.held_out, corpus.held_out)
        tokenizer = train_tokenizer(corpus.training, recipe.vocabulary)
        new_model(recipe, tokenizer.eos_token_id).save_pretrained(made.untrained)
        tokenizer.save_pretrained(made.untrained)
        (staging / _KEY).write_text(key, encoding="utf-8")
    progress("tokenizer", 1.0)
    return Material(folder)


def _key(recipe: SmallBase, corpus: Corpus) -> str:
    """Return a hash of everything that decides what the files are."""
    packages = ("deepen", "torch", "transformers", "tokenizers")
    parts = {
        "recipe": recipe.model_dump(mode="json", exclude={"steps", "sequences", "learning_rate"}),
        "corpus": corpus.fingerprint,
        "versions": {package: version(package) for package in packages},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write_texts(file: Path, texts: tuple[str, ...]) -> None:
    """Write documents as JSON lines."""
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    file.write_text("".join(lines), encoding="utf-8")


def train_tokenizer(texts: tuple[str, ...], vocabulary: int) -> "PreTrainedTokenizerFast":
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


def new_model(recipe: SmallBase, end_of_document: int, seed: int = 0) -> Any:  # noqa: ANN401
    """Build a small Llama with random weights, leaving the global random state as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=recipe.sequence_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_of_document,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config)
    # The embeddings are the head too: larger ones make the first few hundred steps count.
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(recipe.embedding_scale)
    return model
