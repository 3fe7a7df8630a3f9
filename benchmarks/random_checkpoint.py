"""Write a checkpoint of random weights in the shape of a known model, to measure on.

Usage::

    python benchmarks/random_checkpoint.py OUT --like 1b --dtype bfloat16 --seed 0

Weights are normal with standard deviation 0.02, RMSNorm gains are 1, and there is no tokenizer.
One tensor is in memory at a time. Random blocks say what growing costs, never how good it is.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.base.checkpoint import DTYPES, TensorInfo
from deepen.growth.write import ShardWriter

STD = 0.02

LIKE: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "tie_word_embeddings": True,
    },
    "small": {
        "num_hidden_layers": 16,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "1b": {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
"""Shapes: ``1b`` is that of Llama-3.2-1B, ``8b`` that of Llama-3.1-8B."""


def write_random_checkpoint(
    out: Path, like: str = "tiny", dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> int:
    """Write a random Llama checkpoint.

    Args:
        out: Folder to make; it must not exist.
        like: A key of ``LIKE``.
        dtype: Dtype of every tensor.
        seed: Seed of the weights; equal seeds give equal bytes.

    Returns:
        Number of parameters.
    """
    from transformers import LlamaConfig

    config = LlamaConfig(**LIKE[like])
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = dtype
    layout = _layout(config, dtype)
    out.mkdir(parents=True)
    with closing(ShardWriter(out, layout, "5GB")) as writer:
        for name, tensor in _random_tensors(layout, seed):
            writer.write(name, tensor)
        writer.finish()
    config.save_pretrained(out)
    return sum(info.parameters for info in layout.values())


def _layout(config: Any, dtype: torch.dtype) -> dict[str, TensorInfo]:  # noqa: ANN401
    """Return name, dtype and shape of every tensor, from a model without storage."""
    from transformers import LlamaForCausalLM

    stored = next(name for name, known in DTYPES.items() if known is dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    # Tied parameters appear once, under the embeddings' name.
    return {name: TensorInfo(stored, tuple(p.shape)) for name, p in model.named_parameters()}


def _random_tensors(layout: Mapping[str, TensorInfo], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Draw the tensors in the order of the layout."""
    generator = torch.Generator().manual_seed(seed)
    for name, info in layout.items():
        tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
        is_gain = tensor.ndim == 1
        yield name, tensor.fill_(1) if is_gain else tensor.normal_(0, STD, generator=generator)


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--like", choices=LIKE, default="tiny", help="shape")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    count = write_random_checkpoint(given.out, given.like, getattr(torch, given.dtype), given.seed)
    print(f"{given.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
