"""Growing end to end: bytes, memory layout, resume, refusal."""

import json
import os
import shutil
import signal
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import tiny
from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.identity import sha256_of
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth import staging
from deepen.growth.base_files import BASE_FILES, MANIFEST
from deepen.planning.layout import layout
from deepen.planning.plan import Plan
from faults import in_child


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_kept_tensors_are_bit_identical_in_their_dtype(tmp_path, dtype, tied):
    base = tiny.save(tmp_path / "base", dtype=dtype, tie_word_embeddings=tied)
    record = deepen.grow(base, tmp_path / "grown")
    before, after = FolderSource(base), FolderSource(tmp_path / "grown")
    assert ("lm_head.weight" in after.infos) == (not tied)
    plan = Plan.from_json(record.step.plan)
    assert after.infos == layout(open_model(base), plan)
    kept = {name: name for name in ("model.embed_tokens.weight", "model.norm.weight")}
    for index, block in enumerate(record.step.plan):
        if isinstance(block, int):
            kept |= {
                name.replace(f".{block}.", f".{index}.", 1): name
                for name in before.infos
                if name.startswith(f"model.layers.{block}.")
            }
    for new, old in kept.items():
        assert torch.equal(as_bytes(after.load(new)), as_bytes(before.load(old)))
    assert {info.dtype for info in after.infos.values()} == {
        info.dtype for info in before.infos.values()
    }
    loaded = tiny.load(tmp_path / "grown")
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_generation_with_the_cache_is_the_base_s_own(any_family, tmp_path):
    deepen.grow(any_family, tmp_path / "grown", new_layers=3)
    base, grown = tiny.load(any_family), tiny.load(tmp_path / "grown")
    ids = tiny.tokens(any_family)[:1, :12]
    how = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    expected = base.generate(ids, attention_mask=mask, **how)
    assert torch.equal(grown.generate(ids, attention_mask=mask, **how), expected)
    assert torch.equal(grown.generate(ids, attention_mask=mask, use_cache=False, **how), expected)


def test_block_types_of_kept_blocks_do_not_shift(tmp_path):
    base = tiny.save(tmp_path / "base", "qwen2")
    config = json.loads((base / "config.json").read_text())
    del config["layer_types"]  # an older file: transformers would make the list anew from the count
    (base / "config.json").write_text(json.dumps(config))
    record = deepen.grow(base, tmp_path / "grown", placement="bottom", method="llama-pro")
    types = tiny.load(tmp_path / "grown").config.layer_types
    before = tiny.load(base).config.layer_types
    plan = Plan.from_json(record.step.plan)
    assert types == [before[parent] for parent in plan.type_parents]
    assert types.count("sliding_attention") == 2
    assert torch.equal(
        tiny.load(tmp_path / "grown")(tiny.tokens(base)).logits,
        tiny.load(base)(tiny.tokens(base)).logits,
    )


def test_a_copy_below_the_first_block_keeps_the_function_and_comes_off(llama, tmp_path):
    grown, pack = tmp_path / "grown", tmp_path / "pack"
    record = deepen.grow(llama, grown, method="llama-pro", placement="after:-1,3")
    assert record.step.new_blocks == [0, 5]
    ids = tiny.tokens(llama)
    assert torch.equal(tiny.load(llama)(ids).logits, tiny.load(grown)(ids).logits)
    assert deepen.verify(llama, grown).passed
    deepen.pack(grown, pack)
    deepen.attach(llama, pack, tmp_path / "again")
    assert tiny.read(tmp_path / "again") == tiny.read(grown)
    deepen.shrink(grown, tmp_path / "base")
    assert tiny.read(tmp_path / "base") == tiny.read(llama)


def test_everything_else_comes_along(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tool.jinja").write_text("{{ tools }}")
    (base / "optimizer.pt").write_bytes(b"left behind")
    (base / "modeling_x.py").write_text("left = 'behind'")
    deepen.grow(base, tmp_path / "grown")
    before, after = tiny.read(base), tiny.read(tmp_path / "grown")
    same = {
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "LICENSE",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
    }
    assert all(after[name] == before[name] for name in same)
    written = {"config.json", "README.md", "model.safetensors", BASE_FILES, MANIFEST}
    assert after.keys() == same | written


def test_same_inputs_same_bytes_and_the_record_tells_the_whole(llama, tmp_path):
    how = {"method": "lesa", "new_layers": 2, "seed": 3, "max_shard_size": "30KB"}
    record = deepen.grow(llama, tmp_path / "1" / "deep", **how)
    deepen.grow(llama, tmp_path / "2", **how)
    assert tiny.read(tmp_path / "1/deep") == tiny.read(tmp_path / "2")
    assert len(list((tmp_path / "2").glob("*.safetensors"))) > 3
    assert record.parameters == sum(p.numel() for p in tiny.load(tmp_path / "2").parameters())
    assert record.weight_bytes == 2 * record.parameters
    assert (
        record.parameters - record.base_parameters
        == record.new_parameters
        == record.trainable_parameters
    )
    planned = deepen.plan(llama, method="lesa", new_layers=2, seed=3).growth
    assert record.step.base.sha256 == sha256_of(FolderSource(llama))
    told = {"out", "notes", "manifest", "wall_seconds", "peak_bytes", "step"}
    assert record.step.model_copy(update={"base": planned.step.base}) == planned.step
    assert planned == record.model_copy(update={k: getattr(planned, k) for k in told})


@pytest.mark.parametrize("method", ["opt-deus", "lesa", "solar"])
def test_a_live_module_grows_through_the_same_code(llama, tmp_path, method):
    module = tiny.load(llama, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    grown = deepen.grow_model(module, method=method)
    deepen.grow(llama, tmp_path / "grown", method=method)
    stored = tiny.load(tmp_path / "grown", torch.bfloat16)
    assert grown.state_dict().keys() == stored.state_dict().keys()
    assert all(torch.equal(t, stored.state_dict()[n]) for n, t in grown.state_dict().items())
    assert type(grown) is type(module)
    assert grown.dtype == torch.bfloat16
    assert not grown.training
    assert grown.config.deepen["new_blocks"] == stored.config.deepen["new_blocks"]
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items()), (
        "memory is shared"
    )


def test_growing_twice_adds_up(llama, tmp_path):
    deepen.grow(llama, tmp_path / "once", new_layers=2)
    record = deepen.grow(tmp_path / "once", tmp_path / "twice", method="llama-pro", new_layers=2)
    lineage = deepen.inspect(tmp_path / "twice")
    assert [step.method for step in lineage.steps] == ["opt-deus", "llama-pro"]
    assert lineage.steps[1].base.fingerprint == FolderSource(tmp_path / "once").fingerprint
    assert lineage.new_blocks == record.step.new_blocks
    assert deepen.verify(llama, tmp_path / "twice").passed
    assert deepen.verify(tmp_path / "once", tmp_path / "twice").passed


def test_growing_an_untrained_growth_again_keeps_the_size_of_its_features(llama, tmp_path):
    """A parent with zero output projections has nothing to match there."""
    deepen.grow(llama, tmp_path / "once")  # 0 1 2 [3] 4 [5] 6 [7] 8
    deepen.grow(tmp_path / "once", tmp_path / "twice", placement="after:3")
    tensors = load_file(tmp_path / "twice/model.safetensors")
    for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        new, parent = (tensors[f"model.layers.{i}.{name}"].float().norm() for i in (4, 5))
        assert new > 0.5 * parent


def test_a_killed_run_leaves_nothing_at_out_and_resumes_to_the_same_bytes(llama, tmp_path):
    out = tmp_path / "grown"
    unfinished = killed(llama, out)
    assert {file.name for file in tmp_path.iterdir()} == {
        ".grown.deepen-lock",
        unfinished.parent.name,
    }
    finished = {f.name: f.stat().st_mtime_ns for f in unfinished.glob("*.safetensors")}
    assert len(finished) > 2
    how = {"method": "lesa", "max_shard_size": "20KB"}
    with pytest.raises(DeepenError, match="pass --resume"):
        deepen.grow(llama, out, **how)
    with pytest.raises(DeepenError, match="another base, method or options"):
        deepen.grow(llama, out, **how | {"seed": 1}, resume=True)
    deepen.grow(llama, out, **how, resume=True)
    assert list(tmp_path.iterdir()) == [out]
    assert all((out / name).stat().st_mtime_ns == when for name, when in finished.items())
    deepen.grow(llama, tmp_path / "whole", **how)
    assert tiny.read(out) == tiny.read(tmp_path / "whole")


def killed(base, out):
    """Grow in a process that is killed in the middle; return its unfinished folder."""

    def progress(stage, share):
        if "writing" in stage and share > 0.6:
            os.kill(os.getpid(), signal.SIGKILL)

    how = {"method": "lesa", "max_shard_size": "20KB", "progress": progress}
    assert in_child(lambda: deepen.grow(base, out, **how)) == -signal.SIGKILL
    return out.with_name(f".{out.name}.deepen-unfinished") / "whole"


def test_what_was_changed_since_a_kill_is_not_mixed_in(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    how = {"method": "lesa", "max_shard_size": "20KB"}
    deepen.grow(base, tmp_path / "whole", **how)
    unfinished = killed(base, tmp_path / "grown")
    shards = sorted(unfinished.glob("*.safetensors"))
    with shards[0].open("r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"???")
    shards[1].unlink()
    shards[1].symlink_to(shards[2])
    (unfinished / "planted.json").write_text("{}")
    deepen.grow(base, tmp_path / "grown", **how, resume=True)
    assert tiny.read(tmp_path / "grown") == tiny.read(tmp_path / "whole")
    killed(base, tmp_path / "again")
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DeepenError, match="the base's files were changed since"):
        deepen.grow(base, tmp_path / "again", **how, resume=True)


def test_a_base_that_changes_while_it_is_read_is_refused(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    weights = base / "model.safetensors"

    def progress(stage, share):
        if "writing" in stage:
            weights.touch()

    with pytest.raises(DeepenError, match="was changed while it was read"):
        deepen.grow(base, tmp_path / "grown", method="llama-pro", progress=progress)
    assert list(tmp_path.iterdir()) == [base]


def spoil(folder, block, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.{block}.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["opt-deus", "llama-pro", "lesa", "solar"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_inf_in_a_source_block_writes_nothing(llama, tmp_path, method, value):
    base = shutil.copytree(llama, tmp_path / "base")
    spoil(base, 3, value)
    with pytest.raises(
        DeepenError, match=r"Source block 3 holds NaN or Inf in tensor 'model.layers.3.mlp.up"
    ):
        deepen.grow(
            base, tmp_path / "new/grown", method=method, new_layers=4 if method == "solar" else None
        )
    assert list(tmp_path.iterdir()) == [base]


def test_a_result_that_overflows_its_dtype_is_refused(tmp_path):
    base = tiny.save(tmp_path / "base", dtype=torch.float16)
    for fidelity in ("normalised", "structured"):
        with pytest.raises(DeepenError, match="made NaN or Inf"):
            deepen.grow(
                base, tmp_path / "grown", options={"fidelity": fidelity, "feature_scale": 1e6}
            )
    assert list(tmp_path.iterdir()) == [base]


def test_places_that_must_not_be_written(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "models/base")
    for out, sentence in {
        base: "in MODEL's own folder",
        base / "grown": "in MODEL's own folder",
        tmp_path / "models": "holds MODEL",
    }.items():
        with pytest.raises(DeepenError, match=sentence):
            deepen.grow(base, out, overwrite=True)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(DeepenError, match="exists; choose another place or pass --overwrite"):
        deepen.grow(base, precious)
    with pytest.raises(DeepenError, match="not a checkpoint, so --overwrite will not delete it"):
        deepen.grow(base, precious, overwrite=True)
    assert (precious / "thesis.txt").exists()


def test_overwrite_replaces_a_checkpoint_only_by_a_whole_one(llama, tmp_path):
    out = tmp_path / "grown"
    deepen.grow(llama, out, new_layers=1)
    before = tiny.read(out)
    with pytest.raises(DeepenError, match="Unknown method"):
        deepen.grow(llama, out, method="opt-deuz", overwrite=True)
    assert tiny.read(out) == before
    deepen.grow(llama, out, new_layers=2, overwrite=True)
    assert deepen.inspect(out).blocks == 8
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_too_small_is_refused_before_the_first_byte(llama, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 10**6))
    with pytest.raises(DeepenError, match=r"has 0.00 GB free and the checkpoint needs 0.02 GB"):
        deepen.grow(llama, tmp_path / "grown")
    assert not list(tmp_path.iterdir())


def test_bin_weights_are_told_of(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    record = deepen.grow(base, tmp_path / "grown")
    assert "weights-only loading" in record.notes[0]
    assert not list((tmp_path / "grown").glob("*.bin"))
    deepen.grow(llama, tmp_path / "from-safetensors")
    ours, theirs = tiny.read(tmp_path / "grown"), tiny.read(tmp_path / "from-safetensors")
    assert ours["model.safetensors"] == theirs["model.safetensors"]


def scaled(base, out, factor):
    """Copy a checkpoint, its linear layers as large as the factor makes them."""
    shutil.copytree(base, out)
    tensors = load_file(out / "model.safetensors")
    save_file(
        {n: t * factor if "proj" in n else t for n, t in tensors.items()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    return out


def test_weights_near_the_end_of_float32_are_aligned_as_those_of_any_scale(llama, tmp_path):
    base = scaled(llama, tmp_path / "base", 1e18)
    record = deepen.grow(base, tmp_path / "grown")
    assert len(record.step.new_blocks) == 3
    assert deepen.verify(base, tmp_path / "grown").passed


@pytest.mark.parametrize("method", ["opt-deus", "avg-deus", "lesa"])
def test_arithmetic_that_would_overflow_is_refused_and_leaves_nothing(llama, tmp_path, method):
    base = scaled(llama, tmp_path / "base", 1e30)
    with pytest.raises(DeepenError, match="squares of which float32 does not hold") as caught:
        deepen.grow(base, tmp_path / "grown", method=method)
    assert "llama-pro" in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_copies_of_any_weights_verify_and_what_is_unsound_is_told(llama, tmp_path):
    base = scaled(llama, tmp_path / "base", 1e30)
    record = deepen.grow(base, tmp_path / "grown", method="llama-pro", new_layers=2)
    (note,) = record.notes
    assert "is not sound: model.layers.0" in note
    assert "and 39 more" in note
    assert deepen.verify(base, tmp_path / "grown").passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_kept_tensor_that_is_no_number_is_told(llama, tmp_path, value):
    base = shutil.copytree(llama, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    (note,) = deepen.grow(base, tmp_path / "grown", method="llama-pro", new_layers=1).notes
    assert "is not sound: model.norm.weight hold" in note
    assert not deepen.grow(llama, tmp_path / "sound", method="llama-pro", new_layers=1).notes


def test_plans_that_miss_their_marginals_are_told_and_iterations_are_as_asked(llama, tmp_path):
    few = {"solver": "entropic", "regularisation": 1e-3, "max_iterations": 2}
    record = deepen.grow(llama, tmp_path / "few", options=few)
    assert any("meets its marginals (solver entropic)" in note for note in record.notes)
    many = deepen.grow(llama, tmp_path / "many", options=few | {"max_iterations": 10**6})
    assert not many.notes
