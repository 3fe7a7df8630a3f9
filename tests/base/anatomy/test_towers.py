"""Models that read images: the text model grows inside, and images are read as before."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import deepen
import tiny
from cases import whole
from deepen import methods
from deepen.base.anatomy.towers import TOWERS, text_section, with_text_section
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth.widen import widen
from deepen.packs.combine import HOWS, combine
from deepen.packs.pack import pack as make_pack
from deepen.planning.pattern import PERIODS
from deepen.verification.widened import prove_widened


@dataclass(frozen=True)
class Pair:
    """A tiny base and what it was grown into, on disk and loaded."""

    case: str
    base: Path
    grown: Path
    before: Any
    after: Any


@pytest.fixture(scope="module", params=list(whole.CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Each model in turn, in float32 as transformers saves it, grown by opt-deus."""
    folder = tmp_path_factory.mktemp("whole")
    base, grown = folder / "base", folder / "grown"
    whole.model(request.param).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    (base / "preprocessor_config.json").write_text("{}")
    record = deepen.grow(base, grown)
    assert record.depth > record.base_depth
    return Pair(request.param, base, grown, whole.load(base), whole.load(grown))


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def test_text_and_images_are_read_as_before_to_the_last_bit(pair: Pair) -> None:
    for with_image in (False, True):
        before = whole.logits(pair.before, with_image=with_image)
        assert torch.isfinite(before).all()
        assert torch.equal(whole.logits(pair.after, with_image=with_image), before)
    result = deepen.verify(pair.base, pair.grown, sequences=2, length=16)
    assert [check for check in result.checks if not check.passed] == []
    assert result.max_abs_logit_difference == 0.0
    assert result.checks[-1].name == "computes what the base computes, with an image"


def test_all_that_is_no_text_model_is_carried_along(pair: Pair) -> None:
    before, after = (load_file(f / "model.safetensors") for f in (pair.base, pair.grown))
    anatomy = open_model(pair.base).anatomy
    beside = [name for name in before if anatomy.family.is_beside(name)]
    assert len(beside) > 20
    assert all(torch.equal(after[name], before[name]) for name in anatomy.outside)
    old, new = config_of(pair.base), config_of(pair.grown)
    texts = [config.pop("text_config") for config in (old, new)]
    changed = {f for f in {*texts[0], *texts[1]} if texts[0].get(f) != texts[1].get(f)}
    assert changed <= {"num_hidden_layers", "layer_types", "max_window_layers", *PERIODS}
    assert texts[1]["num_hidden_layers"] == len(texts[1].get("layer_types", range(9))) == 9
    assert new.pop("deepen")["new_blocks"]
    assert new == old
    assert (pair.grown / "preprocessor_config.json").read_text() == "{}"


def test_a_live_module_is_grown_like_a_checkpoint(pair: Pair) -> None:
    grown = deepen.grow_model(pair.before)
    for name, tensor in pair.after.state_dict().items():
        assert torch.equal(grown.state_dict()[name], tensor)


def test_what_was_grown_comes_off_and_goes_on_again(pair: Pair, tmp_path: Path) -> None:
    deepen.pack(pair.grown, tmp_path / "pack")
    deepen.attach(pair.base, tmp_path / "pack", tmp_path / "again")
    assert tiny.read(tmp_path / "again") == tiny.read(pair.grown)
    deepen.shrink(pair.grown, tmp_path / "shrunk")
    assert tiny.read(tmp_path / "shrunk") == tiny.read(pair.base)


def test_a_model_saved_by_others_is_grown_again(pair: Pair, tmp_path: Path) -> None:
    pair.after.save_pretrained(tmp_path / "saved")
    deepen.grow(tmp_path / "saved", tmp_path / "twice", method="llama-pro", new_layers=1)
    before = whole.logits(pair.before, with_image=True)
    assert torch.equal(whole.logits(whole.load(tmp_path / "twice"), with_image=True), before)


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "opt-deus"])
def test_every_method_of_the_text_model(method: str, tmp_path: Path) -> None:
    whole.model("llava").save_pretrained(tmp_path / "base")
    deepen.grow(tmp_path / "base", tmp_path / "grown", method=method, new_layers=2)
    result = deepen.verify(tmp_path / "base", tmp_path / "grown", sequences=1, length=8)
    assert [check for check in result.checks if not check.passed] == []
    assert result.checks[-1].name.endswith(", with an image")


@pytest.mark.parametrize("case", ["gemma3", "qwen2_vl", "llava"])
def test_the_layouts_of_other_transformers_are_grown_as_they_are(case: str, tmp_path: Path) -> None:
    """Of one older than 5, and the names that modules have in memory."""
    model = whole.model(case)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "memory").mkdir()
    names = model.state_dict()
    if model.config.tie_word_embeddings:
        del names["lm_head.weight"]
    save_file(names, tmp_path / "memory" / "model.safetensors", {"format": "pt"})
    (tmp_path / "memory" / "config.json").write_text((tmp_path / "base/config.json").read_text())
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert stored.keys() != names.keys()
    expected = whole.logits(whole.load(tmp_path / "memory"), with_image=True)
    for layout in ("base", "memory"):
        deepen.grow(tmp_path / layout, tmp_path / f"grown-{layout}", method="llama-pro")
        found = whole.logits(whole.load(tmp_path / f"grown-{layout}"), with_image=True)
        assert torch.equal(found, expected)
        before, after = (
            load_file(tmp_path / n / "model.safetensors") for n in (layout, f"grown-{layout}")
        )
        assert before.keys() < after.keys()


def test_a_config_without_sections_is_grown_without(tmp_path: Path) -> None:
    """As the hub has Qwen2-VL."""
    whole.model("qwen2_vl").save_pretrained(tmp_path / "base")
    config = config_of(tmp_path / "base")
    flat = {**config.pop("text_config"), **config}
    flat["vision_config"]["six"] = [0] * 6  # of as many entries as there are blocks
    (tmp_path / "base" / "config.json").write_text(json.dumps(flat))
    deepen.grow(tmp_path / "base", tmp_path / "grown", placement="after:0,4")
    grown = config_of(tmp_path / "grown")
    assert grown["model_type"] == "qwen2_vl"
    assert grown["num_hidden_layers"] == len(grown["layer_types"]) == 8
    assert grown["vision_config"] == flat["vision_config"]
    models = [whole.load(tmp_path / name) for name in ("base", "grown")]
    assert torch.equal(*(whole.logits(model, with_image=True) for model in models))
    assert deepen.verify(tmp_path / "base", tmp_path / "grown").passed


def test_blocks_that_images_enter_by_index_keep_it(tmp_path: Path) -> None:
    whole.model("qwen3_vl").save_pretrained(tmp_path / "base")
    with pytest.raises(DeepenError, match=r"lowest 2 blocks .* by their index"):
        deepen.grow(tmp_path / "base", tmp_path / "no", placement="after:0")
    assert not (tmp_path / "no").exists()
    deepen.grow(tmp_path / "base", tmp_path / "grown", placement="after:1")
    models = [whole.load(tmp_path / name) for name in ("base", "grown")]
    assert torch.equal(*(whole.logits(model, with_image=True) for model in models))


def refusal(folder: Path, case: str, change: Any) -> str:
    """Return what is said of a tiny model whose config.json was changed."""
    whole.model(case).save_pretrained(folder)
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DeepenError) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_models_that_no_table_has_are_refused(tmp_path: Path) -> None:
    def other(config: dict[str, Any]) -> None:
        config["text_config"]["model_type"] = "gemma3n_text"

    assert "'gemma3n_text', which deepen does not grow: its blocks" in refusal(
        tmp_path, "llava", other
    )
    assert "has no text_config" in refusal(
        tmp_path, "llava", lambda config: config.pop("text_config")
    )


def test_a_tensor_of_the_text_model_that_no_table_knows_is_refused(tmp_path: Path) -> None:
    whole.model("llava").save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    save_file(
        {**load_file(file), "language_model.model.odd": torch.zeros(1)}, file, {"format": "pt"}
    )
    with pytest.raises(DeepenError, match=r"'language_model\.model\.odd' is not part of"):
        deepen.plan(tmp_path / "base")


def test_a_tensor_that_the_whole_model_lacks_or_has_too_many_is_named(tmp_path: Path) -> None:
    whole.model("llava").save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    kept = {n: t for n, t in tensors.items() if n != "multi_modal_projector.linear_1.bias"}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(DeepenError, match=r"lacks tensor .*projector\.linear_1\.bias"):
        deepen.plan(tmp_path / "base")
    save_file({**tensors, "vision_tower.odd": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(DeepenError, match=r"has tensor 'vision_tower\.odd'"):
        deepen.plan(tmp_path / "base")


def test_a_section_is_put_back_to_where_it_was() -> None:
    flat = {
        "model_type": "qwen2_vl",
        "vision_config": {"a": 1},
        "num_hidden_layers": 6,
        "period": 2,
    }
    section = {**(text_section(flat) or {}), "num_hidden_layers": 8, "model_type": "other"}
    assert section.keys() == {"model_type", "num_hidden_layers", "period"}
    del section["period"]
    expected = {"model_type": "qwen2_vl", "vision_config": {"a": 1}, "num_hidden_layers": 8}
    assert with_text_section(flat, section) == expected
    nested = {"model_type": "llava", "text_config": {"num_hidden_layers": 6}, "kept": 1}
    section = {**(text_section(nested) or {}), "num_hidden_layers": 8, "model_type": "llama"}
    expected = {"model_type": "llava", "text_config": {"num_hidden_layers": 8}, "kept": 1}
    assert with_text_section(nested, section) == expected


def test_every_listed_model_is_tested() -> None:
    assert {case[0] for case in whole.CASES.values()} == set(TOWERS)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's word
def test_packs_combine_widths_grow_and_adapters_stay_with_the_text(tmp_path: Path) -> None:
    base, grown, pack, wider = (tmp_path / name for name in ("base", "grown", "pack", "wider"))
    whole.model("llava").save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    deepen.grow(base, grown, new_layers=2)
    make_pack(grown, pack)
    for how in HOWS:
        combine(base, pack, pack, tmp_path / how, how=how)
        assert deepen.verify(base, tmp_path / how, sequences=2, length=16).passed
    widen(base, wider, 4)
    assert prove_widened(base, wider, device="cpu").passed
    targets = deepen.inspect(grown, peft=True).peft
    assert targets is not None
    given = {key: value for key, value in targets.model_dump().items() if value}
    model = get_peft_model(whole.load(grown), LoraConfig(**given))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    new = deepen.inspect(grown).new_blocks
    assert trained
    assert all(any(f"language_model.layers.{block}." in name for block in new) for name in trained)
