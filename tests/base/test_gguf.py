"""A GGUF file as a checkpoint: the same logits as transformers' own reading of the file."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ggufs
from deepen.base.gguf import import_gguf
from deepen.base.model import open_model
from deepen.common.errors import DeepenError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as llama.cpp stores it."""
    return ggufs.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


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
    assert model.depth == ggufs.BLOCKS
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
    assert "local_files_only" not in (again / "tokenizer_config.json").read_text()


def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF and then nothing of use" * 9)
    with pytest.raises(DeepenError, match="cannot read") as raised:
        import_gguf(tmp_path / "damaged.gguf", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def changed(file: Path, out: Path, field: str, number: int) -> Path:
    """Copy a file, one of its numbers changed."""
    content = bytearray(file.read_bytes())
    place = content.index(field.encode()) + len(field) + 4  # behind the name stands its type
    content[place : place + 4] = number.to_bytes(4, "little")
    out.write_bytes(content)
    return out


@pytest.mark.parametrize(
    ("field", "number", "said"),
    [
        ("llama.block_count", 3, "tells of 3 blocks, and has 2; give a whole"),
        ("llama.block_count", 2**31, "num_hidden_layers"),
        ("llama.feed_forward_length", 2**20, "parameters, and has"),
        ("llama.embedding_length", 2**29, "hidden_size"),
        ("llama.feed_forward_length", ggufs.FFN + 1, "transformers cannot read"),
    ],
)
def test_a_size_that_its_tensors_do_not_have_is_refused_before_memory_is_taken(
    file: Path, tmp_path: Path, field: str, number: int, said: str
) -> None:
    damaged = changed(file, tmp_path / "damaged.gguf", field, number)
    with pytest.raises(DeepenError, match=said):
        import_gguf(damaged, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def test_a_tensor_that_is_not_there_is_not_made_up(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    (tmp_path / "damaged.gguf").write_bytes(content.replace(b"blk.1.ffn_up", b"blk.1.ffn_uq"))
    with pytest.raises(DeepenError, match=r"lacks tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        import_gguf(tmp_path / "damaged.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def test_a_missing_file_and_a_place_that_is_taken(file: Path, imported: Path) -> None:
    with pytest.raises(DeepenError, match="There is no file"):
        import_gguf("nowhere.gguf", "out")
    with pytest.raises(DeepenError, match="exists"):
        import_gguf(file, imported)
    with pytest.raises(DeepenError, match="not a checkpoint"):
        import_gguf(file, file.parent, overwrite=True)
