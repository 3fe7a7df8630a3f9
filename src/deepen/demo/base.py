"""The base: trained once, saved as an ordinary checkpoint, and found again by the next run."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from deepen.base import open_base
from deepen.demo.corpus import Corpus
from deepen.demo.recipe import REVISION, BaseRecipe
from deepen.demo.tokens import Tokens, load_tokenizer, tokenize, train_tokenizer
from deepen.demo.training import Training, train
from deepen.errors import DeepenError
from deepen.methods.base import Progress
from deepen.records import Record
from deepen.staging import staged

_RECORD = "base.json"


class BaseRecord(Record):
    """Which base lies in the demo's folder, and how it was made."""

    key: str
    """SHA-256 over the recipe, the corpus and the software: what decides on its weights."""
    fingerprint: str
    """SHA-256 of its weights as ``Source.fingerprint`` defines it."""
    corpus_fingerprint: str
    """SHA-256 of the files that it was trained on, and of the held-out ones."""
    training_characters: int
    """Length of the corpus, without the held-out files."""
    training: Training
    """How it was trained."""


def cached_base(
    folder: Path, recipe: BaseRecipe, corpus: Corpus, progress: Progress
) -> tuple[BaseRecord, bool]:
    """Return the base in ``folder/base``, training it unless it is there.

    Returns:
        Its record, and whether it was there.

    Raises:
        DeepenError: Something else is there.
    """
    out, key = folder / "base", cache_key(recipe, corpus)
    record = _read_record(folder / _RECORD)
    if record is not None and record.key == key and _has(out, record.fingerprint):
        return record, True
    if out.exists() and not (folder / _RECORD).exists():
        raise DeepenError(
            f"{str(out)!r} has no {_RECORD} beside it, so the demo did not make it and will not "
            f"replace it; delete it or give the demo another folder."
        )
    training = _make(out, recipe, corpus, progress)
    record = BaseRecord(
        key=key,
        fingerprint=open_base(out).source.fingerprint,
        corpus_fingerprint=corpus.fingerprint,
        training_characters=corpus.characters,
        training=training,
    )
    (folder / _RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record, False


def cache_key(recipe: BaseRecipe, corpus: Corpus) -> str:
    """Return a hash of everything that decides what the base is."""
    packages = ("torch", "transformers", "tokenizers")
    parts = {
        "revision": REVISION,
        "recipe": recipe.model_dump(mode="json"),
        "corpus": corpus.fingerprint,
        "versions": {package: version(package) for package in packages},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def base_tokens(folder: Path, recipe: BaseRecipe, corpus: Corpus) -> Tokens:
    """Return the corpus in the tokens of the base in ``folder``."""
    return tokenize(corpus, load_tokenizer(folder), recipe.sequence_tokens, recipe.seed)


def _read_record(file: Path) -> BaseRecord | None:
    """Read the record of an earlier run; ``None`` if there is none that this version wrote."""
    try:
        return BaseRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _has(folder: Path, fingerprint: str) -> bool:
    """Whether a folder holds a checkpoint with these weights and a tokenizer."""
    try:
        found = open_base(folder).source.fingerprint
    except DeepenError:
        return False
    return found == fingerprint and (folder / "tokenizer.json").is_file()


def _make(out: Path, recipe: BaseRecipe, corpus: Corpus, progress: Progress) -> Training:
    """Train tokenizer and model; the folder appears when both are in it."""
    progress("tokenizing the corpus", 0.0)
    tokenizer = train_tokenizer(corpus.training, recipe.vocabulary)
    tokens = tokenize(corpus, tokenizer, recipe.sequence_tokens, recipe.seed)
    progress("tokenizing the corpus", 1.0)
    model = new_model(recipe, tokenizer.eos_token_id)
    sequences = tokens.batch_order(0, recipe.budget.total_sequences)
    training = train(model, sequences, recipe.budget, progress, "training the base")
    needed = sum(parameter.nbytes for parameter in model.parameters())
    with staged(out, {}, needed, resume=False, overwrite=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return training


def new_model(recipe: BaseRecipe, end_of_document: int) -> Any:  # noqa: ANN401
    """Build a small Llama with random weights, leaving the global random state as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=recipe.sequence_tokens,
        initializer_range=recipe.initial_deviation,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_of_document,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)
