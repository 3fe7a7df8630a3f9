"""A tiny Llama as llama.cpp stores it, its weights random, with a byte-level tokenizer."""

from pathlib import Path

import gguf
import numpy as np
import torch

import tiny

HIDDEN, FFN, BLOCKS, HEADS = 16, 32, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write(path: Path) -> Path:
    """Write the file."""
    words = sorted(tiny.tokenizer().backend_tokenizer.get_vocab())
    words = [*SPECIAL, *(word for word in words if len(word) == 1), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(words) - len(SPECIAL)))
    # Two spaces are one token: the rule for digits decides whether they meet.
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    for name, tensor in tensors(len(words)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(vocabulary: int) -> dict[str, np.ndarray]:
    """Random weights, of which bfloat16 holds every bit."""
    draw = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        values = torch.tensor(draw.normal(0, 0.5, shape), dtype=torch.bfloat16)
        return values.to(torch.float32).numpy()

    made = {"token_embd.weight": weight(vocabulary, HIDDEN), "output_norm.weight": weight(HIDDEN)}
    for block in range(BLOCKS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            made[f"blk.{block}.{part}.weight"] = weight(HIDDEN, HIDDEN)
        for part in ("ffn_gate", "ffn_up"):
            made[f"blk.{block}.{part}.weight"] = weight(FFN, HIDDEN)
        made[f"blk.{block}.ffn_down.weight"] = weight(HIDDEN, FFN)
        made[f"blk.{block}.attn_norm.weight"] = weight(HIDDEN)
        made[f"blk.{block}.ffn_norm.weight"] = weight(HIDDEN)
    return made
