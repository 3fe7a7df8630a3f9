"""What is taken off and put back is the same to the last byte, and what is not is told."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import FolderSource
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.growth.manifest import read_manifest
from deepen.growth.widen import widen
from deepen.packs.pack import open_pack
from runs import trained


def refused(call: Any, *arguments: Any, **settings: Any) -> str:
    """Return the sentence of a refusal that leaves nothing behind."""
    with pytest.raises(DeepenError) as error:
        call(*arguments, **settings)
    assert not Path(arguments[-1]).exists()
    return str(error.value)


@pytest.fixture(scope="module")
def grown(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bfloat16 Llama with two new blocks, 4 and 6 of 8; read only."""
    out = tmp_path_factory.mktemp("grown") / "grown"
    deepen.grow(llama, out, new_layers=2)
    return out


@pytest.fixture(scope="module")
def pack(grown: Path) -> Path:
    """Its new blocks; read only."""
    deepen.pack(grown, grown.parent / "pack")
    return grown.parent / "pack"


@pytest.mark.parametrize("case", ["mixtral", "jamba", "deepseek_v3", "gemma3_text"])
def test_attach_and_shrink_give_back_every_byte(case: str, tmp_path: Path) -> None:
    model_type, settings = CASES[case]
    base = tmp_path / "base"
    shrink.model(model_type, **settings).to(torch.bfloat16).save_pretrained(
        base, max_shard_size="40KB"
    )
    deepen.grow(base, tmp_path / "grown", max_shard_size="50KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    record = deepen.pack(tmp_path / "grown", tmp_path / "pack")
    assert record.changed == []
    assert record.weight_bytes < record.grown_weight_bytes / 2
    deepen.attach(base, tmp_path / "pack", tmp_path / "again")
    assert tiny.read(tmp_path / "again") == tiny.read(tmp_path / "grown")
    deepen.shrink(tmp_path / "grown", tmp_path / "shrunk")
    assert tiny.read(tmp_path / "shrunk") == tiny.read(base)


def test_a_pack_is_the_new_blocks_and_no_file_of_the_base(grown: Path, pack: Path) -> None:
    opened = open_pack(pack)
    assert {name.split(".")[2] for name in opened.infos} == {"4", "6"}
    files = {name for name in tiny.read(pack) if name.startswith("files/")}
    own = ("config.json", "README.md", "deepen-base.json", "deepen-manifest.json")
    assert files == {f"files/{name}" for name in own}
    assert "license: mit" in (pack / "README.md").read_text()
    assert opened.lineage == open_pack(pack).lineage
    assert str(grown.parent) not in (pack / "pack.json").read_text()


def test_packs_of_trained_models_hold_all_that_was_trained(
    llama: Path, grown: Path, tmp_path: Path
) -> None:
    new_only = trained(grown, tmp_path / "a")
    more = trained(new_only, tmp_path / "b", also=["embeddings"], save_dtype="float32")
    for number, (model, changed) in enumerate(
        [(new_only, []), (more, ["model.embed_tokens.weight"])]
    ):
        out = tmp_path / str(number)
        assert deepen.pack(model, out / "pack").changed == changed
        deepen.attach(llama, out / "pack", out / "again")
        assert tiny.read(out / "again") == tiny.read(model)
    deepen.shrink(new_only, tmp_path / "base")
    assert tiny.read(tmp_path / "base") == tiny.read(llama)
    assert "model.embed_tokens.weight" in refused(deepen.shrink, more, tmp_path / "forced")
    record = deepen.shrink(more, tmp_path / "forced", force=True)
    assert "model.embed_tokens.weight" in record.notes[0]
    before, after = FolderSource(llama), FolderSource(tmp_path / "forced")
    differing = [n for n in before.infos if not torch.equal(before.load(n), after.load(n))]
    assert differing == ["model.embed_tokens.weight"]
    assert deepen.reproduce(more, base=llama).passed


def test_growths_come_off_one_by_one_or_all(llama: Path, grown: Path, tmp_path: Path) -> None:
    deepen.grow(grown, tmp_path / "twice", method="llama-pro", new_layers=2)
    deepen.shrink(tmp_path / "twice", tmp_path / "once", growths=1)
    assert tiny.read(tmp_path / "once") == tiny.read(grown)
    deepen.shrink(tmp_path / "twice", tmp_path / "none")
    assert tiny.read(tmp_path / "none") == tiny.read(llama)
    deepen.pack(tmp_path / "twice", tmp_path / "pack")
    deepen.attach(llama, tmp_path / "pack", tmp_path / "again")
    assert tiny.read(tmp_path / "again") == tiny.read(tmp_path / "twice")


def test_what_few_write_into_card_and_config_comes_back_as_it_was(
    llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    (base / "README.md").write_bytes(b"---\nlicense: mit\n---\nCaf\xe9\n")
    widen(base, tmp_path / "wide", 2)
    assert "license: mit" in (tmp_path / "wide/README.md").read_text(encoding="utf-8")
    config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": -1}
    (base / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(config).encode())
    deepen.grow(base, tmp_path / "once", method="llama-pro", new_layers=1)
    assert deepen.verify(base, tmp_path / "once", sequences=1, length=4).passed
    deepen.grow(tmp_path / "once", tmp_path / "twice", method="llama-pro", new_layers=1)
    deepen.shrink(tmp_path / "twice", tmp_path / "again")
    assert tiny.read(tmp_path / "again") == tiny.read(base)


@pytest.mark.parametrize(
    "spoilt", [{"plan": []}, {"plan": [0, [0, 0, 0.5]]}, {"weights": {"model.safetensors": "{}"}}]
)
def test_a_pack_of_other_tensors_than_its_plan_makes_is_refused(
    llama: Path, pack: Path, tmp_path: Path, spoilt: dict[str, Any]
) -> None:
    other = shutil.copytree(pack, tmp_path / "pack")
    record = json.loads((other / "pack.json").read_text())
    (other / "pack.json").write_text(json.dumps(record | spoilt))
    assert "other tensors than its plan" in refused(deepen.attach, llama, other, tmp_path / "out")


@pytest.mark.parametrize(
    "header", ["", "[1]", '{"a": {}}', '{"a": 1}', '{"a": {"data_offsets": 1}}']
)
def test_a_header_that_is_none_is_one_sentence(grown: Path, tmp_path: Path, header: str) -> None:
    spoilt = shutil.copytree(grown, tmp_path / "grown")
    kept = json.loads((spoilt / "deepen-base.json").read_text())
    kept["weights"]["model.safetensors"] = header
    (spoilt / "deepen-base.json").write_text(json.dumps(kept))
    for call in (deepen.shrink, deepen.pack):
        assert "deepen-base.json' is damaged" in refused(call, spoilt, tmp_path / "out")


def test_bin_weights_come_back_as_the_same_tensors(llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    deepen.grow(base, tmp_path / "grown", new_layers=2)
    deepen.shrink(tmp_path / "grown", tmp_path / "shrunk")
    assert FolderSource(tmp_path / "shrunk").fingerprint == FolderSource(base).fingerprint


def test_what_does_not_fit_is_refused(llama: Path, grown: Path, pack: Path, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", seed=1)
    sentence = refused(deepen.attach, other, pack, tmp_path / "out")
    assert "fingerprint" in sentence
    assert "is not a pack" in refused(deepen.attach, llama, grown, tmp_path / "out")
    assert "no deepen entry" in refused(deepen.pack, llama, tmp_path / "out")
    changed = shutil.copytree(grown, tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"].view(torch.int16)[0, 0] ^= 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    assert "no training in its lineage names" in refused(deepen.pack, changed, tmp_path / "out")
    assert "pass --force" in refused(deepen.shrink, changed, tmp_path / "out")
    (changed / "deepen-base.json").unlink()
    assert "deepen-base.json" in refused(deepen.shrink, changed, tmp_path / "out")
    broken = shutil.copytree(pack, tmp_path / "broken")
    with (broken / "blocks.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    for call in (deepen.attach, deepen.combine):
        packs = (broken,) if call is deepen.attach else (pack, broken)
        how = {} if call is deepen.attach else {"how": "average"}
        sentence = refused(call, llama, *packs, tmp_path / "out", **how)
        assert sentence.startswith("blocks.safetensors of the pack")
    record = json.loads((broken / "pack.json").read_text()) | {"tensors_sha256": None}
    (broken / "pack.json").write_text(json.dumps(record))  # as earlier versions wrote it
    assert "would not be the grown checkpoint's" in refused(
        deepen.attach, llama, broken, tmp_path / "out"
    )
    (broken / "files/config.json").write_text("{}")
    assert "files/config.json of the pack" in refused(
        deepen.attach, llama, broken, tmp_path / "out"
    )
    assert deepen.reproduce(changed, base=llama).passed is False
    assert not list(tmp_path.glob(".*"))


def test_interleaved_blocks_lie_one_set_above_the_other(
    llama: Path, pack: Path, tmp_path: Path
) -> None:
    deepen.grow(llama, tmp_path / "g", method="random", placement="after:3,3,4", per_gap=2)
    deepen.pack(tmp_path / "g", tmp_path / "b")
    deepen.combine(llama, pack, tmp_path / "b", tmp_path / "out", how="interleave")
    config = json.loads((tmp_path / "out/config.json").read_text())
    gap = [3, 4, 0.5]
    plan = config["deepen"]["steps"][0]["plan"]
    assert [i for i in plan if isinstance(i, int)] == [0, 1, 2, 3, 4, 5]
    assert plan[4] == gap  # A's own, and then both of B
    assert [block[:2] for block in plan[4:7]] == [[3, 4]] * 3
    out, a, b = (FolderSource(f) for f in (tmp_path / "out", pack.parent / "grown", tmp_path / "g"))
    name = "model.layers.{}.mlp.up_proj.weight"
    made_of = {4: (a, 4), 5: (b, 4), 6: (b, 5), 8: (a, 6), 9: (b, 7)}
    for index, (source, there) in made_of.items():
        assert torch.equal(out.load(name.format(index)), source.load(name.format(there)))
    assert config["deepen"]["new_blocks"] == [*made_of]
    manifest = read_manifest(tmp_path / "out")
    assert {name.split(".")[2] for name in manifest.new_tensors} == {*map(str, made_of)}
    assert deepen.verify(llama, tmp_path / "out").max_abs_logit_difference == 0.0


def test_average_is_the_mean_of_each_pair(llama: Path, pack: Path, tmp_path: Path) -> None:
    after = "after:3,4"
    deepen.grow(llama, tmp_path / "g", method="random", placement=after)
    deepen.pack(tmp_path / "g", tmp_path / "b")
    deepen.combine(llama, pack, tmp_path / "b", tmp_path / "out", how="average")
    a, b, out = (FolderSource(f) for f in (pack.parent / "grown", tmp_path / "g", tmp_path / "out"))
    for name, info in out.infos.items():
        x, y = a.load(name).double(), b.load(name).double()
        assert info == a.infos[name]
        assert torch.equal(out.load(name), ((x + y) / 2).to(torch.bfloat16))
    deepen.grow(llama, tmp_path / "h", placement="bottom", new_layers=1)
    deepen.pack(tmp_path / "h", tmp_path / "c")
    sentence = refused(
        deepen.combine, llama, pack, tmp_path / "c", tmp_path / "none", how="average"
    )
    assert "--how interleave" in sentence


@pytest.mark.parametrize("how", ["interleave", "average"])
def test_two_domains_are_combined_and_evaluated_on_both(
    llama: Path, domains: dict[str, Path], tmp_path: Path, how: Any
) -> None:
    record = deepen.combine(llama, *packs_of(domains), tmp_path / "both", how=how)
    assert len(record.new_blocks) == (4 if how == "interleave" else 2)
    assert deepen.verify(llama, tmp_path / "both").passed
    texts = [folder / "text.txt" for folder in domains.values()]
    base, both = (
        [text.loss_nats_per_token for text in deepen.evaluate(model, perplexity=texts).texts]
        for model in (llama, tmp_path / "both")
    )
    assert all(after < before for after, before in zip(both, base, strict=True))


@pytest.fixture(scope="module")
def domains(grown: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders, each with a text, and in ``pack`` the new blocks that were trained on it."""
    halves = {"first": PASSAGE[:600], "second": PASSAGE[600:]}
    folders = {name: tmp_path_factory.mktemp(name) for name in halves}
    for name, folder in folders.items():
        model = trained(grown, folder, text=halves[name], max_steps=6)
        deepen.pack(model, folder / "pack")
    return folders


def packs_of(domains: dict[str, Path]) -> list[Path]:
    return [folder / "pack" for folder in domains.values()]


def reshaped(pack: Path, out: Path, shape: list[int] | None) -> Path:
    """Copy a pack of an earlier version, with one tensor of another shape, or without it."""
    shutil.copytree(pack, out)
    record = json.loads((out / "pack.json").read_text()) | {"tensors_sha256": None}
    (out / "pack.json").write_text(json.dumps(record))
    tensors = load_file(out / "blocks.safetensors")
    name = "model.layers.4.mlp.up_proj.weight"
    tensors |= {name: tensors[name].reshape(shape)} if shape else {}
    kept = {key: tensor for key, tensor in tensors.items() if shape or key != name}
    save_file(kept, out / "blocks.safetensors", metadata={"format": "pt"})
    return out


def test_what_would_not_load_is_refused_before_it_is_written(
    llama: Path, pack: Path, tmp_path: Path
) -> None:
    turned = reshaped(pack, tmp_path / "turned", [24, 40])
    bare = reshaped(pack, tmp_path / "bare", None)
    out, together = tmp_path / "out", {"how": "interleave"}
    for damaged, said in ((turned, "a tensor [24, 40]"), (bare, "nothing")):
        sentence = refused(deepen.combine, llama, pack, damaged, out, **together)
        assert f"holds {said} as 'model.layers.4.mlp.up_proj.weight'" in sentence
    # A fingerprint is of tensors, and config.json may have been changed since.
    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"mlp_bias": True}
    (base / "config.json").write_text(json.dumps(config))
    sentence = refused(deepen.combine, base, pack, pack, out, **together)
    assert "base with pack and pack lacks tensor" in sentence
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("method", ["lesa", "solar"])
def test_a_growth_is_reproduced(llama: Path, tmp_path: Path, method: str) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    deepen.grow(base, tmp_path / "grown", method=method, seed=3)
    record = deepen.reproduce(tmp_path / "grown")  # the base is found by its name, beside
    assert record.passed
    assert record.notes == []
    shutil.rmtree(base)
    with pytest.raises(DeepenError, match="pass --base"):
        deepen.reproduce(tmp_path / "grown")


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd"])
def test_names_that_lead_out_of_a_folder_are_refused(
    llama: Path, grown: Path, pack: Path, tmp_path: Path, name: str
) -> None:
    evil = shutil.copytree(pack, tmp_path / "evil")
    record = json.loads((evil / "pack.json").read_text())
    for key in ("files", "weights", "from_base"):
        changed = [*record[key], name] if key == "from_base" else record[key] | {name: "0"}
        (evil / "pack.json").write_text(json.dumps(record | {key: changed}))
        assert "inside the folder" in refused(deepen.attach, llama, evil, tmp_path / "out")
    planted = shutil.copytree(grown, tmp_path / "planted")
    kept = json.loads((planted / "deepen-base.json").read_text())
    for key in ("texts", "weights", "copied"):
        text = json.dumps(kept | {key: kept[key] | {name: "0"}})
        (planted / "deepen-base.json").write_text(text)
        assert "is damaged" in refused(deepen.shrink, planted, tmp_path / "out")


def test_a_base_that_differs_in_the_middle_of_a_tensor_is_another(
    llama: Path, grown: Path, pack: Path, tmp_path: Path
) -> None:
    """Recorded and given fingerprints agree: only every byte tells."""
    record = json.loads((pack / "pack.json").read_text())
    assert len(record["base"]["sha256"]) == 64
    other = shutil.copytree(pack, tmp_path / "other")
    record["base"]["sha256"] = "0" * 64
    (other / "pack.json").write_text(json.dumps(record))
    for call in (deepen.attach, partial(deepen.combine, how="average")):
        packs = (other,) if call is deepen.attach else (other, other)
        assert "middle of a tensor" in refused(call, llama, *packs, tmp_path / "out")
    record["base"]["sha256"] = None  # as in a pack of before
    (other / "pack.json").write_text(json.dumps(record))
    deepen.attach(llama, other, tmp_path / "out")
    assert tiny.read(tmp_path / "out") == tiny.read(grown)
