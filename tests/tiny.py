"""Tiny real checkpoints: every family, every parameter perturbed, with a tokenizer of their own."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from deepen.base.text import PASSAGE

VOCABULARY = 320
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
}

# Qwen2 with a sliding window from block 4 on, so that blocks differ in type.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4},
    "qwen3": {"tie_word_embeddings": True},
}


def tokenizer(template: str = "$A") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the passage that ``verify`` reads.

    Args:
        template: What it makes of a text, ``$A``; with ``<eos>`` in front of it, for example.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([PASSAGE], trainer)
    if template != "$A":
        end = ("<eos>", bpe.token_to_id("<eos>"))
        bpe.post_processor = processors.TemplateProcessing(single=template, special_tokens=[end])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def model(family: str = "llama", seed: int = 0, **sizes: Any) -> Any:
    """Build a tiny model, every parameter of it random, norms and biases too."""
    settings = SIZES | FAMILIES[family] | sizes
    config = CONFIG_MAPPING[family.partition("-")[0]](**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return built.eval()


def save(
    folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.bfloat16, **sizes: Any
) -> Path:
    """Save a tiny checkpoint with tokenizer, licence and card."""
    model(family, **sizes).to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "LICENSE").write_text("Do as you like.\n")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Tiny\n")
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a checkpoint as any user would."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def tokens(folder: Path, length: int = 24) -> torch.Tensor:
    """Return two sequences of real tokens."""
    ids = AutoTokenizer.from_pretrained(folder)(PASSAGE)["input_ids"]
    return torch.tensor([ids[:length], ids[length : 2 * length]])


def read(folder: Path) -> dict[str, bytes]:
    """Return a folder's files as bytes."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
