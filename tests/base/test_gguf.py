"""A GGUF file as a checkpoint: the same logits as transformers' own reading of the file."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from deepen.base.gguf import import_gguf
from deepen.base.model import open_model
from deepen.common.errors import DeepenError

HIDDEN, FFN, BLOCKS, HEADS = 16, 32, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as llama.cpp stores it, its weights random, with a byte-level tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
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


@pytest.fixture(scope="module")
def imported(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "out"
    return import_gguf(file, out, beside={"LICENSE": b"Do as you like.\n"})


def test_the_logits_are_those_that_transformers_reads(file: Path, imported: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    found = AutoModelForCausalLM.from_pretrained(imported, dtype=torch.float32)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, expected.to(torch.float32)(ids).logits)


def test_it_is_an_ordinary_checkpoint_in_bfloat16(imported: Path) -> None:
    model = open_model(imported)
    assert model.depth == BLOCKS
    assert {info.dtype for info in model.source.infos.values()} == {"BF16"}
    assert "quantization_config" not in model.source.config
    assert model.source.config["rms_norm_eps"] == 1e-5
    assert (imported / "LICENSE").read_text() == "Do as you like.\n"


def test_the_tokenizer_has_its_special_tokens_and_splits_at_every_digit(imported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(imported)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in  42")
    assert [piece for piece, _ in split] == ["in", "ĠĠ", "4", "2"]
    assert tokenizer.model_max_length == 64


def test_two_imports_are_the_same_bytes(file: Path, imported: Path, tmp_path: Path) -> None:
    again = import_gguf(file, tmp_path / "again", beside={"LICENSE": b"Do as you like.\n"})
    names = {path.name for path in imported.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    assert all((imported / n).read_bytes() == (again / n).read_bytes() for n in names)


def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF and then nothing of use" * 9)
    with pytest.raises(DeepenError, match="cannot read") as raised:
        import_gguf(tmp_path / "damaged.gguf", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def test_a_missing_file_and_a_place_that_is_taken(file: Path, imported: Path) -> None:
    with pytest.raises(DeepenError, match="There is no file"):
        import_gguf("nowhere.gguf", "out")
    with pytest.raises(DeepenError, match="exists"):
        import_gguf(file, imported)
    with pytest.raises(DeepenError, match="not a checkpoint"):
        import_gguf(file, file.parent, overwrite=True)
