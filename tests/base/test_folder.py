"""Real folders: what transformers would read of them, and what they are when it reads nothing."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import _get_resolved_checkpoint_files

import deepen
import tiny
from deepen.base.anatomy import FAMILIES
from deepen.base.checkpoint import FolderSource, ModuleSource
from deepen.base.folder import WEIGHTS, find_weights, is_own, refuse_wrapped
from deepen.base.hub import open_checkpoint
from deepen.common.errors import DeepenError

SHARDS = {name: [f"{name[:5]}-{i}{Path(name[:-11]).suffix}" for i in (2, 1)] for name in WEIGHTS}
"""Index → the shards that it names, not in the order of their names."""


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def write_index(index: Path, files: dict[str, str]) -> None:
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))


def theirs(folder: Path, explicit: str | None = None) -> list[str] | None:
    """Return the files that transformers reads, in its order; ``None`` if it cannot."""
    how = dict.fromkeys(("variant", "gguf_file", "use_safetensors", "user_agent"))
    try:
        files, _ = _get_resolved_checkpoint_files(
            str(folder), **how, is_remote_code=False, transformers_explicit_filename=explicit
        )
    except (OSError, ValueError):
        return None
    return files if all(map(Path.is_file, map(Path, files))) else None


def ours(folder: Path, explicit: str | None = None) -> list[str] | None:
    try:
        files = find_weights(folder, {"transformers_weights": explicit}).files
    except DeepenError:
        return None
    return list(map(str, files))


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=len(WEIGHTS))))
@pytest.mark.parametrize("shards", ["all", "one", "none"])
def test_the_files_are_those_that_transformers_reads(tmp_path, present, shards):
    for name in itertools.compress(WEIGHTS, present):
        (tmp_path / name).touch()
        if name.endswith(".index.json"):
            write_index(tmp_path / name, dict(zip("ab", SHARDS[name], strict=True)))
            for file in SHARDS[name][: {"all": 2, "one": 1, "none": 0}[shards]]:
                (tmp_path / file).touch()
    assert ours(tmp_path) == theirs(tmp_path)


@pytest.mark.parametrize(
    "explicit",
    [
        "other.safetensors",
        "model.safetensors",
        "gone.safetensors",
        "../up.safetensors",
        "other.bin",
    ],
)
def test_a_file_that_config_names_is_read_or_refused_as_transformers_does(tmp_path, explicit):
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in ("../up.safetensors", "other.safetensors", "other.bin", *WEIGHTS[::2]):
        (folder / file).touch()
    assert ours(folder, explicit) == theirs(folder, explicit)


def test_a_stale_index_beside_the_weights_is_not_read(copy, tmp_path):
    """What a fine-tune saved into its own folder leaves, with and without the old shards."""
    old = load_file(copy / "model.safetensors")
    save_file({n: t + 1 for n, t in old.items()}, copy / "model-00001-of-00001.safetensors")
    write_index(
        copy / "model.safetensors.index.json",
        dict.fromkeys(old, "model-00001-of-00001.safetensors"),
    )
    record = deepen.grow(copy, tmp_path / "grown", method="llama-pro", new_layers=1)
    assert record.notes == [
        "copy holds other weights too: model.safetensors was read, as transformers does, "
        "model-00001-of-00001.safetensors, model.safetensors.index.json not."
    ]
    assert record.notes[0] in deepen.plan(copy).growth.notes
    ids = tiny.tokens(copy)
    assert torch.equal(tiny.load(tmp_path / "grown")(ids).logits, tiny.load(copy)(ids).logits)
    (copy / "model-00001-of-00001.safetensors").unlink()
    assert FolderSource(copy).infos.keys() == old.keys()


def test_a_tensor_is_where_it_lies_and_not_where_the_index_says(copy):
    """Of two shards with a tensor of one name, transformers takes the later."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    later = {"model.norm.weight": tensors["model.norm.weight"] + 1}
    save_file(tensors, copy / "a.safetensors")
    save_file(later, copy / "b.safetensors")
    names = sorted(tensors)
    where = {name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(names)}
    write_index(copy / "model.safetensors.index.json", where)
    source, loaded = FolderSource(copy), tiny.load(copy, torch.bfloat16).state_dict()
    assert all(torch.equal(source.load(name), loaded[name]) for name in names)


def test_what_config_names_does_not_come_along(copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    edit(copy / "config.json", transformers_weights="other.safetensors")
    deepen.grow(copy, tmp_path / "grown")
    assert deepen.verify(copy, tmp_path / "grown").passed
    assert tiny.load(tmp_path / "grown").config.num_hidden_layers == 9


def bare(folder: Path) -> None:
    """Take the weights away."""
    (folder / "model.safetensors").unlink()


def put(name: str, content: str = ""):
    """Return what puts a file in the place of the weights."""

    def apply(folder: Path) -> None:
        bare(folder)
        (folder / name).write_text(content)

    return apply


OTHERS = {
    "adapter alone": (
        put("adapter_config.json", '{"base_model_name_or_path": "owner/base"}'),
        "holds an adapter of 'owner/base', and no model; merge it",
    ),
    "damaged adapter": (put("adapter_config.json", "{"), "holds an adapter, and no model"),
    "GGUF": (put("model.Q4_K_M.gguf"), "holds GGUF weights .* `deepen import .*gguf OUT`"),
    "variant": (put("model.fp16.safetensors"), "variant 'fp16' .* variant='fp16'"),
    "shards of a variant": (put("model.fp16-00001-of-00002.safetensors"), "variant 'fp16'"),
    "index of a variant": (put("model.safetensors.index.fp16.json"), "variant 'fp16'"),
    "pickled variant": (put("pytorch_model.fp16.bin"), "variant 'fp16'"),
    "no index": (
        put("model-00001-of-00002.safetensors"),
        "without their index, model.safetensors.index.json; fetch",
    ),
    "something else": (put("tf_model.h5"), "holds no model.safetensors or pytorch_model.bin"),
}


@pytest.mark.parametrize("config", [True, False], ids=["with config", "without"])
@pytest.mark.parametrize("case", OTHERS)
def test_a_folder_is_called_what_it_is(copy, case, config):
    change, sentence = OTHERS[case]
    change(copy)
    if not config:
        (copy / "config.json").unlink()
        if case == "something else":
            sentence = "has no config.json"
    with pytest.raises(DeepenError, match=sentence) as raised:
        open_checkpoint(copy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "there", "sentence"),
    [
        ("model.gguf", True, "is a GGUF file; .* `deepen import .*model.gguf OUT`"),
        ("model.gguf", False, "There is no file"),
        ("model.safetensors", True, "is a file; name the checkpoint's folder"),
    ],
)
def test_a_file_is_no_folder(tmp_path, name, there, sentence):
    if there:
        (tmp_path / name).touch()
    for command in (
        deepen.plan,
        deepen.inspect,
        lambda model: deepen.grow(model, tmp_path / "out"),
        lambda model: deepen.verify(model, model),
        lambda model: deepen.evaluate(model, perplexity=["text"]),
    ):
        with pytest.raises(DeepenError, match=sentence):
            command(tmp_path / name)


@pytest.mark.parametrize(
    ("wrapped", "sentence"),
    [
        ("module.{}", "torch's DataParallel .* `model.module.save_pretrained"),
        ("_orig_mod.{}", r"torch.compile .* `model._orig_mod.save_pretrained"),
        ("module._orig_mod.{}", "DataParallel"),
        ("base_model.model.{}", "as peft does .* `model.merge_and_unload"),
        ("_fsdp_wrapped_module.{}", "torch's FSDP"),
    ],
)
def test_names_of_wrappers_are_recognised(copy, wrapped, sentence):
    tensors = load_file(copy / "model.safetensors")
    save_file({wrapped.format(n): t for n, t in tensors.items()}, copy / "model.safetensors")
    with pytest.raises(DeepenError, match=sentence) as raised:
        open_checkpoint(copy)
    assert "\n" not in str(raised.value)


def test_a_compiled_module_is_recognised(llama):
    module = tiny.load(llama)
    compiled = torch.compile(module, backend="eager")
    with pytest.raises(DeepenError, match=r"torch.compile"):
        ModuleSource(compiled, module.config.to_dict())


def test_no_family_has_the_names_of_a_wrapper():
    for family in FAMILIES.values():
        inside = {suffix for table in family.kinds.values() for suffix in table}
        refuse_wrapped("x", [*family.around, *(family.block_prefix + "0." + s for s in inside)])


def test_custom_code_for_a_native_class_is_left_out_and_told(copy, tmp_path):
    edit(
        copy / "config.json",
        auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "owner/repo--x.M"},
    )
    (copy / "x.py").write_text("raise SystemExit")
    record = deepen.grow(copy, tmp_path / "grown")
    assert [
        "custom code (auto_map), which was neither read nor run" in n for n in record.notes
    ] == [True]
    assert "auto_map" not in json.loads((tmp_path / "grown/config.json").read_text())
    assert not (tmp_path / "grown/x.py").exists()
    assert deepen.verify(copy, tmp_path / "grown").passed
    AutoModelForCausalLM.from_pretrained(tmp_path / "grown", trust_remote_code=True)


@pytest.mark.parametrize(
    "shard", ["../elsewhere.safetensors", "/etc/passwd", "a/../../b", "", "\0"]
)
def test_an_index_names_files_of_its_folder_only(copy, tmp_path, shard):
    (copy / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    write_index(copy / "model.safetensors.index.json", {"a": shard})
    with pytest.raises(DeepenError, match="is not a file of its folder; correct the index"):
        FolderSource(copy)


def cached(base: Path, cache: Path) -> Path:
    """Lay a checkpoint out as the hub's cache does; return its snapshot."""
    snapshot, blobs = cache / "models--a--b/snapshots/abc", cache / "models--a--b/blobs"
    shutil.copytree(base, blobs)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
        file.rename(blobs / str(number))
    return snapshot


def test_the_hubs_cache_is_a_folder_and_links_out_of_one_are_not_its_own(llama, tmp_path):
    snapshot = cached(llama, tmp_path / "hub")
    assert all(is_own(file, snapshot) for file in snapshot.iterdir())
    assert FolderSource(snapshot).infos == FolderSource(llama).infos
    (tmp_path / "link").symlink_to(llama)
    assert all(is_own(file, tmp_path / "link") for file in (tmp_path / "link").iterdir())
    for target in ("../../refs", "../../../other/blobs/0", "/etc/passwd", str(tmp_path)):
        (snapshot / "out").unlink(missing_ok=True)
        (snapshot / "out").symlink_to(target)
        assert not is_own(snapshot / "out", snapshot)
