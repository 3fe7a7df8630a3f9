"""After training, verify proves that the base is untouched, and finds what no training names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import shrink
import tiny
from cases import CASES
from deepen.base.model import open_model
from deepen.growth.base_files import MANIFEST
from deepen.records.growth import read_lineage
from deepen.records.verification import Check, VerifyRecord
from deepen.verification import running
from deepen.verification.trained import may_differ, since
from runs import trained


def flip(folder: Path, name: str, position: int = 0) -> None:
    """Flip the lowest bit of one number."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(torch.int16).flatten()[position] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def named(record: VerifyRecord, start: str) -> Check:
    """Return a check by the beginning of its name."""
    return next(check for check in record.checks if check.name.startswith(start))


@pytest.fixture(scope="module")
def grown(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bfloat16 Llama with two new blocks, 4 and 6 of 8; read only."""
    out = tmp_path_factory.mktemp("grown") / "grown"
    deepen.grow(llama, out, new_layers=2)
    return out


def test_a_trained_model_passes_and_says_how_far_it_moved(
    llama: Path, grown: Path, tmp_path: Path
) -> None:
    model = trained(grown, tmp_path)
    assert deepen.verify(grown, model, sequences=1, length=8).passed
    record = deepen.verify(llama, model)
    assert record.passed, record
    assert record.trained
    assert named(record, "kept blocks").detail.startswith("57 tensors")
    assert named(record, "new blocks").detail == "2 blocks, 2 of them no longer what they were"
    assert named(record, "generates").passed
    assert record.checks[-1].name == "function moved, by training"
    assert record.kl_nats_per_token is not None
    assert record.kl_nats_per_token > 0
    assert VerifyRecord.model_validate_json(record.model_dump_json()) == record


CANDIDATES = {
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.up_proj.weight",
}
CHOICES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "new blocks, embeddings and norm, stored as float32": (
        {"also": ["embeddings", "norm"], "save_dtype": "float32"},
        {"model.embed_tokens.weight", "model.norm.weight"},
    ),
    "a block of the base": (
        {"trains": [0, 4]},
        {"model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"},
    ),
    "everything": ({"trains": "everything"}, CANDIDATES),
    "neurons": ({"neurons": 3}, set()),
    "adapters on kept blocks": (
        {"lora": {"rank": 2, "blocks": "kept"}},
        {"model.layers.0.mlp.up_proj.weight"},
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_no_training_names_must_be_the_base_s(
    llama: Path, grown: Path, tmp_path: Path, choice: str
) -> None:
    """Whatever trained, another bit elsewhere is found, and one where it trained is not."""
    settings, allowed = CHOICES[choice]
    if "lora" in settings:
        pytest.importorskip("peft")
    model = trained(grown, tmp_path, **settings)
    assert (record := deepen.verify(llama, model)).passed, record
    (model / MANIFEST).unlink()  # which would notice every change
    for name in allowed:
        flip(model, name)
    assert deepen.verify(llama, model, sequences=1, length=8).passed
    for name in sorted(CANDIDATES - allowed)[:2]:
        flip(model, name)
        kept = named(deepen.verify(llama, model, sequences=1), "kept blocks")
        assert not kept.passed
        assert kept.detail.startswith(name)
        flip(model, name)


def test_a_block_that_training_left_as_it_was_is_found(
    llama: Path, grown: Path, tmp_path: Path
) -> None:
    model = trained(grown, tmp_path)
    before, after = load_file(grown / "model.safetensors"), load_file(model / "model.safetensors")
    after |= {name: tensor for name, tensor in before.items() if ".layers.4." in name}
    save_file(after, model / "model.safetensors", metadata={"format": "pt"})
    check = named(deepen.verify(llama, model), "new blocks")
    assert (check.passed, check.detail) == (False, "block 4 is what it was before training")


def test_training_between_two_growths_is_counted_in_the_last_model(
    llama: Path, grown: Path, tmp_path: Path
) -> None:
    once = trained(grown, tmp_path / "once", trains=[4, 5], also=["norm"])
    deepen.grow(once, tmp_path / "twice", method="llama-pro", placement="after:0,4")
    lineage = read_lineage(open_model(tmp_path / "twice").source.config)
    assert lineage is not None
    (training,) = since(lineage, open_model(llama).source.fingerprint).trainings
    assert training.blocks == [5, 7]
    assert since(lineage, open_model(once).source.fingerprint).trainings == []
    assert deepen.verify(once, tmp_path / "twice").max_abs_logit_difference == 0.0
    record = deepen.verify(llama, trained(tmp_path / "twice", tmp_path / "again"))
    assert record.passed, record
    assert record.methods == ["opt-deus", "llama-pro"]
    assert "blocks 7, model.norm.weight" in named(record, "kept").detail


def test_a_model_that_was_trained_and_never_grown(llama: Path, tmp_path: Path) -> None:
    """Its upper blocks, say, which is what one would do instead of growing."""
    model = trained(llama, tmp_path, trains=[4, 5])
    record = deepen.verify(llama, model)
    assert record.passed, record
    assert record.checks[0].name == "base is the one that was trained"
    assert (record.methods, record.trained) == ([], True)
    assert read_lineage(open_model(model).source.config) is None
    flip(model, "model.layers.3.mlp.up_proj.weight")
    assert not named(deepen.verify(llama, model), "kept").passed
    flip(model, "model.layers.3.mlp.up_proj.weight")
    deepen.grow(model, tmp_path / "grown", new_layers=1)
    assert deepen.verify(model, tmp_path / "grown").max_abs_logit_difference == 0.0
    assert deepen.verify(llama, tmp_path / "grown").passed


def test_a_model_trained_by_other_means(llama: Path, grown: Path, tmp_path: Path) -> None:
    """A training loop of one's own, saved by transformers in float32."""
    model = tiny.load(grown)
    new = set(model.config.deepen["new_blocks"])
    with torch.no_grad():
        for index in new:
            model.model.layers[index].mlp.down_proj.weight.add_(0.01)
    model.save_pretrained(tmp_path / "own")
    assert not deepen.verify(llama, tmp_path / "own").passed
    record = deepen.verify(llama, tmp_path / "own", trained=True)
    assert record.passed, record
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(0.01)
    model.save_pretrained(tmp_path / "own")
    assert not named(deepen.verify(llama, tmp_path / "own", trained=True), "kept").passed


def test_new_blocks_that_are_not_silent_without_any_training_fail(
    llama: Path, grown: Path, tmp_path: Path
) -> None:
    """An untrained model that claims to have been trained fails too."""
    check = named(deepen.verify(llama, grown, trained=True), "new blocks")
    assert (check.passed, check.detail.count("is what it was")) == (False, 2)


def test_names_of_what_may_differ_are_those_on_the_disk(tmp_path: Path) -> None:
    """Transformers holds a Mixtral's experts otherwise than its checkpoint does."""
    model_type, settings = CASES["mixtral"]
    shrink.model(model_type, **settings).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    deepen.grow(tmp_path / "base", tmp_path / "grown")
    model = trained(tmp_path / "grown", tmp_path, also=["norm"])
    record = deepen.verify(tmp_path / "base", model)
    assert record.passed, record
    opened = open_model(model)
    lineage = read_lineage(opened.source.config)
    assert lineage is not None
    names = may_differ(opened, since(lineage, lineage.steps[0].base.fingerprint).trainings)
    new = {opened.family.split(name)[0] for name in names if opened.family.split(name)}
    assert new == set(lineage.new_blocks)
    assert set(opened.family.final_norm) < names.keys() < opened.source.infos.keys()


@pytest.mark.parametrize(("base", "model", "passes"), [(0, 0, True), (0, 1, False), (1, 1, True)])
def test_a_cache_that_changes_the_logits_is_only_forgiven_where_the_base_s_does(
    llama: Path, monkeypatch: pytest.MonkeyPatch, base: int, model: int, passes: bool
) -> None:
    one, other = open_model(llama), open_model(llama)
    differences = {id(one): 0.1 * base, id(other): 0.1 * model}
    monkeypatch.setattr(running, "_cached_difference", lambda m, *_: differences[id(m)])
    tokens = torch.zeros(1, 8, dtype=torch.long)
    check = running.check_generates(one, other, tokens, torch.device("cpu"))
    assert check.passed == passes
