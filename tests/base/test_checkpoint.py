"""Reading bases: both formats, and everything that can be wrong with a folder."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from deepen.base.checkpoint import FolderSource, ModuleSource
from deepen.base.model import open_model
from deepen.common.errors import DeepenError


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def sharded(folder: Path, out: Path) -> Path:
    tiny.load(folder, torch.bfloat16).save_pretrained(out, max_shard_size="20KB")
    assert len(list(out.glob("*.safetensors"))) > 2
    return out


def pickled(folder: Path, out: Path, shards: int = 1) -> Path:
    """Write the checkpoint as ``.bin`` files; ``lm_head`` shares memory with the embeddings."""
    out.mkdir()
    shutil.copy(folder / "config.json", out)
    edit_config(out, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if shards == 1:
        torch.save(tensors, out / "pytorch_model.bin")
        return out
    names = {n: f"pytorch_model-{i % shards}.bin" for i, n in enumerate(sorted(tensors))}
    names["lm_head.weight"] = names["model.embed_tokens.weight"]
    for file in set(names.values()):
        torch.save({n: t for n, t in tensors.items() if names[n] == file}, out / file)
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return out


def test_every_tensor_reads_as_stored(any_family):
    source, expected = FolderSource(any_family), load_file(any_family / "model.safetensors")
    assert source.infos.keys() == expected.keys()
    for name, tensor in expected.items():
        loaded = source.load(name)
        assert loaded.dtype == tensor.dtype
        assert torch.equal(loaded, tensor)
        assert source.infos[name].nbytes == tensor.nbytes


def test_fingerprint_ignores_shards_and_format_but_not_one_number(llama, tmp_path, copy):
    whole = FolderSource(llama).fingerprint
    assert FolderSource(sharded(llama, tmp_path / "sharded")).fingerprint == whole
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, copy / "model.safetensors")
    assert FolderSource(copy).fingerprint != whole


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_files_are_read_without_their_aliases(llama, tmp_path, shards):
    source = FolderSource(pickled(llama, tmp_path / "bin", shards))
    expected = load_file(llama / "model.safetensors")
    expected.pop("lm_head.weight", None)
    assert source.is_pickled
    assert source.infos.keys() == expected.keys()
    assert all(torch.equal(source.load(n), t) for n, t in expected.items())


def test_a_bin_file_that_would_run_code_is_refused(llama, tmp_path):
    folder = pickled(llama, tmp_path / "bin")
    torch.save({"x": Path("boom")}, folder / "pytorch_model.bin")
    with pytest.raises(DeepenError, match="holds more than weights"):
        FolderSource(folder)


def test_a_live_module_is_the_same_source(llama):
    module = tiny.load(llama, torch.bfloat16)
    live, stored = ModuleSource(module, module.config.to_dict()), FolderSource(llama)
    assert live.fingerprint == stored.fingerprint
    assert live.name == "tiny-llama"  # never a path


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def index(folder, **changes):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    weights = dict.fromkeys(load_file(folder / "shard.safetensors"), "shard.safetensors")
    text = json.dumps({"weight_map": weights | changes})
    (folder / "model.safetensors.index.json").write_text(text)


def retype(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(
        dtype
    )
    save_file(tensors, folder / "model.safetensors")


BROKEN = {
    "no folder": (lambda f: shutil.rmtree(f), "There is no folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "does not hold a JSON object",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "truncated": (truncate, "truncated or damaged"),
    "missing shard": (
        lambda f: index(f, **{"model.norm.weight": "gone.safetensors"}),
        "'gone.safetensors' is named by",
    ),
    "index names too much": (
        lambda f: index(f, **{"model.extra": "shard.safetensors"}),
        "holds tensor 'model.extra', but it is not",
    ),
    "index not an index": (
        lambda f: (
            (f / "model.safetensors").rename(f / "model.safetensors.index.json").write_text("{}")
        ),
        "not a shard index",
    ),
    "GPTQ": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}),
        r"quantised \(gptq\)",
    ),
    "FP8": (lambda f: retype(f, torch.float8_e4m3fn), "stored as F8_E4M3"),
    "integers": (lambda f: retype(f, torch.int32), "stored as I32"),
    "custom code": (
        lambda f: edit_config(f, model_type="nonesuch", auto_map={"AutoModel": "x.Y"}),
        "asks for custom code",
    ),
    "other family": (
        lambda f: edit_config(f, model_type="nonesuch"),
        "family 'nonesuch', which deepen cannot grow yet",
    ),
    "no family": (lambda f: edit_config(f, model_type=None), "names no model_type"),
    "wrong config": (lambda f: edit_config(f, num_hidden_layers="six"), "rejects config.json"),
    "deeper config": (
        lambda f: edit_config(f, num_hidden_layers=7),
        "lacks tensor 'model.layers.6",
    ),
    "shallower config": (lambda f: edit_config(f, num_hidden_layers=5), "belongs to block 5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_in_one_sentence(case, copy):
    spoil, sentence = BROKEN[case]
    spoil(copy)
    with pytest.raises(DeepenError, match=sentence) as raised:
        open_model(copy)
    assert "\n" not in str(raised.value)


def test_an_untied_head_must_be_there(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(DeepenError, match=r"lacks tensor 'lm_head.weight'"):
        open_model(copy)


HOSTILE = {
    "nested config": (
        lambda f: (f / "config.json").write_text('{"a": ' + "[" * 9_000 + "]" * 9_000 + "}"),
        "levels deep",
    ),
    "model_type a list": (lambda f: edit_config(f, model_type=["llama"]), "model_type .* no text"),
    "a billion blocks": (lambda f: edit_config(f, num_hidden_layers=10**9), "no model has more"),
    "a billion labels": (lambda f: edit_config(f, num_labels=10**9), "'num_labels' .* 1000000000"),
    "heads of a billion": (lambda f: edit_config(f, head_dim=10**9), "'head_dim' .* 1000000000"),
    "a number of no computer": (lambda f: edit_config(f, rope_theta=10**30), "'rope_theta'"),
    "nested number": (
        lambda f: edit_config(f, rope_parameters={"original_max_position_embeddings": 10**12}),
        "'original_max_position_embeddings'",
    ),
    "config of UTF-16": (
        lambda f: (f / "config.json").write_bytes("{}".encode("utf-16")),
        "not UTF-8",
    ),
    "a pipe": (lambda f: os.mkfifo(f / "tokenizer.json"), "no regular file"),
    "a device": (lambda f: (f / "chat_template.jinja").symlink_to("/dev/zero"), "no regular file"),
    "a huge text": (
        lambda f: ((f / "vocab.json").touch(), os.truncate(f / "vocab.json", 2**40)),
        "larger than",
    ),
    "nested index": (
        lambda f: (
            bare(f),
            (f / "model.safetensors.index.json").write_text("[" * 9_000 + "]" * 9_000),
        ),
        "levels deep",
    ),
}


def bare(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("case", HOSTILE)
def test_what_would_hang_or_take_all_memory_is_refused(case, copy):
    spoil, sentence = HOSTILE[case]
    (copy / "tokenizer.json").unlink(missing_ok=True)
    spoil(copy)
    with pytest.raises(DeepenError, match=sentence) as raised:
        open_model(copy)
    assert "\n" not in str(raised.value)


def test_a_byte_order_mark_is_no_mistake(copy):
    file = copy / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert open_model(copy).depth == 6


ONES = torch.ones(2, 2)
PICKLES = {
    "a tensor": (ONES, "holds a Tensor and no state dict"),
    "a list": ([ONES], "holds a list"),
    "nothing": (None, "holds a NoneType"),
    "numbers as names": ({3: ONES}, "under 3, which is no name"),
    "sparse": ({"a": ONES.to_sparse()}, "in a form"),
    "meta": ({"a": ONES.to("meta")}, "in a form"),
    "more numbers than it has": ({"a": torch.ones(1).expand(2**40)}, "fewer numbers"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_bin_file_that_is_no_state_dict_is_told(case, copy):
    bare(copy)
    content, sentence = PICKLES[case]
    torch.save(content, copy / "pytorch_model.bin")
    with pytest.raises(DeepenError, match=sentence) as raised:
        open_model(copy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_bin_file_with_flipped_bytes_is_told_or_reads(copy, zipped):
    tensors = load_file(copy / "model.safetensors")
    bare(copy)
    file = copy / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole) // 20, (40,), generator=generator).tolist():
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(DeepenError):
            source = open_model(copy).source
            for name in source.infos:
                source.load(name)
