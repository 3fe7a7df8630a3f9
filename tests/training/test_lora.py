"""Adapters: what is published is what ran, the rest keeps its bits, and a kill changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deepen
import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.layers import linear_layers
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.planning.partial import lora_parameters
from deepen.records.training import TrainRecord
from deepen.training import train
from deepen.training.freeze import Trains, adapt
from deepen.training.phases import job
from deepen.training.recipe import LoraConfig
from runs import Make, interrupted, losses

FAMILIES = ["llama", "gpt2", "gemma3_text", "phi3", "gpt_neox"]


def base_of(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save a tiny checkpoint that was not grown."""
    model_type, settings = CASES.get(family, (family, {}))
    shrink.model(model_type, **settings).to(dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep the module that is trained."""
    modules: list[Any] = []

    def keep(module: Any, *args: Any) -> None:
        adapt(module, *args)
        modules.append(module)

    monkeypatch.setattr(job, "adapt", keep)
    return modules


def changed(before: Path, after: Path) -> set[str]:
    """Return the names of the tensors whose bits differ."""
    old, new = FolderSource(before), FolderSource(after)
    assert old.infos == new.infos
    return {n for n in old.infos if not torch.equal(as_bytes(old.load(n)), as_bytes(new.load(n)))}


def model_of(record: TrainRecord) -> Path:
    return Path(record.output) / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_the_one_that_was_trained(
    family: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(tmp_path / "base", family, torch.float32)
    modules = watched(monkeypatch)
    record = train(recipe(model=base, lora={"rank": 3, "alpha": 5}, learning_rate=3e-3), "cpt")
    tokens = tiny.tokens(base)
    with torch.no_grad():
        trained, was = modules[0].eval()(tokens).logits, tiny.load(base)(tokens).logits
        merged = tiny.load(model_of(record))(tokens).logits
    assert (trained - was).abs().max() > 1e-2
    assert (merged - trained).abs().max() < 2e-5 * trained.abs().max()
    model = open_model(base)
    layers = [layer for i in range(model.depth) for layer in linear_layers(model, i)]
    assert changed(base, model_of(record)) == {f"{layer.path}.weight" for layer in layers}
    inside = modules[0].get_submodule(model.blocks_path)
    assert len(layers) == sum(hasattr(part, "lora_A") for part in inside.modules())
    assert record.trainable_parameters == lora_parameters(model, 3, range(model.depth))
    assert record.parameters == tiny.load(base).num_parameters() + record.trainable_parameters


@pytest.mark.parametrize(
    ("asked", "expected", "precision"),
    [
        ("new", {4, 6}, "bfloat16"),
        ("kept", {0, 1, 2, 3, 5, 7}, "float32"),
        ([0, 7], {0, 7}, "float32"),
    ],
    ids=str,
)
def test_blocks_without_adapters_keep_their_bits(
    asked: Any, expected: set[int], precision: str, recipe: Make, grown: Path, llama: Path
) -> None:
    record = train(recipe(lora={"rank": 2, "blocks": asked}, precision=precision), "cpt")
    family = open_model(grown).family
    names = changed(grown, model_of(record))
    assert {place[0] for name in names if (place := family.split(name))} == expected
    assert not any("norm" in name for name in names)
    assert record.trainable_blocks == sorted(expected)
    card = (model_of(record) / "README.md").read_text()
    blocks = ", ".join(map(str, sorted(expected)))
    assert f"as adapters of rank 2 (LoRA, merged) on blocks {blocks}\n" in card
    # What the lineage says may differ is what does.
    kept = {check.name: check for check in deepen.verify(llama, model_of(record)).checks}
    assert all(check.passed for check in kept.values())
    told = kept["kept blocks bit-identical"].detail
    names_them = sorted(expected - {4, 6})
    assert ("training may have changed" in told) == bool(names_them)
    assert all(str(index) in told.partition("blocks ")[2] for index in names_them)


def test_merging_rounds_once(recipe: Make, grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = watched(monkeypatch)
    record = train(recipe(lora={"rank": 2, "alpha": 6.0, "blocks": "kept"}), "cpt")
    name = "model.layers.0.mlp.up_proj"
    layer = modules[0].get_submodule(name)
    product = layer.lora_B["deepen"].weight @ layer.lora_A["deepen"].weight
    expected = FolderSource(grown).load(f"{name}.weight").float() + 3.0 * product.detach()
    after = FolderSource(model_of(record)).load(f"{name}.weight")
    assert torch.equal(after, expected.bfloat16())


def test_a_killed_run_goes_on_and_keeps_adapters_alone(recipe: Make) -> None:
    settings = {"lora": {"rank": 2}, "keep_checkpoints": True}
    expected = train(recipe(output="whole", **settings), "cpt")
    record = interrupted(recipe, 4, **settings)
    assert record.resumed_from_step == 2
    assert losses(record) == losses(expected)
    models = [tiny.read(model_of(r))["model.safetensors"] for r in (record, expected)]
    assert models[0] == models[1]
    saved = Path(record.output) / "checkpoints" / "checkpoint-6" / "model.safetensors"
    assert saved.stat().st_size < 4 * record.trainable_parameters + 20_000


def starts(model: Path, seed: int) -> list[torch.Tensor]:
    """Return the first values of a model's adapters."""
    module = tiny.load(model)
    trains = Trains(False, (1, 2), frozenset(), lora=LoraConfig(rank=2))
    adapt(module, open_model(model), trains, seed)
    return [p.detach() for p in module.parameters() if p.requires_grad]


def test_adapters_start_from_the_seed_and_nothing_else(llama: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = starts(llama, 0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = starts(llama, 0), starts(llama, 1)
    assert all(map(torch.equal, first, again))
    assert [bool(a.any()) for a in first] == [True, False] * (len(first) // 2)
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.any())
    bound = max(a.abs().max() * a.shape[1] ** 0.5 for a in first)
    assert 0.9 < bound <= 1


def test_fine_tuning_takes_adapters_too(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b c"}\n' * 9)
    data = {"path": str(tmp_path / "rows.jsonl")}
    record = train(recipe(data, lora={"rank": 2, "blocks": "new"}), "sft")
    assert losses(record)[-1] < losses(record)[0]


def refused(recipe: Make, **settings: Any) -> str:
    with pytest.raises(DeepenError) as error:
        train(recipe(**settings), "cpt")
    assert not (Path(recipe().output) / "model").exists()
    return str(error.value)


def test_refusals(recipe: Make, llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    said = refused(recipe, model=llama, lora={"rank": 2, "blocks": "kept"})
    assert "not grown by deepen, so nothing says which blocks are kept" in said
    assert "no block 9" in refused(recipe, lora={"rank": 2, "blocks": [9]})
    assert "names no block" in refused(recipe, lora={"rank": 2, "blocks": []})
    assert "leave out training.also" in refused(recipe, lora={"rank": 2}, also=["norm"])
    mixture = base_of(tmp_path / "mixture", "mixtral")
    deepen.grow(mixture, tmp_path / "grown")
    said = refused(recipe, model=tmp_path / "grown", lora={"rank": 2})
    assert "experts of block 0 of grown lie in one tensor" in said
    monkeypatch.setattr("deepen.training.lora.find_spec", lambda name: None)
    assert "pip install 'deepen[lora]'" in refused(recipe, lora={"rank": 2})


def test_dense_blocks_among_experts_take_adapters(recipe: Make, tmp_path: Path) -> None:
    """Given the family, peft takes a dense FFN's layers there for experts, of all blocks."""
    base = base_of(tmp_path / "mixture", "qwen3_moe")
    record = train(recipe(model=base, lora={"rank": 2, "blocks": [1, 3]}), "cpt")
    layers = [layer for index in (1, 3) for layer in linear_layers(open_model(base), index)]
    assert changed(base, model_of(record)) == {f"{layer.path}.weight" for layer in layers}


@pytest.mark.parametrize("family", ["mamba", "bamba", "falcon_h1-plain"])
def test_layers_that_kernels_read_without_calling_take_no_adapters(
    recipe: Make, tmp_path: Path, family: str
) -> None:
    """Adapters there would learn nothing, and be lost where the kernels run."""
    base = base_of(tmp_path / "base", family)
    wanted = {"rank": 2, "blocks": [0, 1]}
    record = train(recipe(model=base, lora=wanted), "cpt")
    model = open_model(base)
    layers = [layer for index in (0, 1) for layer in linear_layers(model, index)]
    scanned = {layer.path.rpartition(".")[2] for layer in layers if not layer.called}
    assert scanned <= {"x_proj", "dt_proj", "out_proj"}
    assert "out_proj" in scanned
    adapted = {f"{layer.path}.weight" for layer in layers if layer.called}
    assert changed(base, model_of(record)) == adapted


def test_every_linear_layer_of_a_block_is_found(llama: Path) -> None:
    model = open_model(llama)
    block = tiny.load(llama).model.layers[1]
    names = {f"model.layers.1.{n}" for n, p in block.named_modules() if isinstance(p, nn.Linear)}
    layers = linear_layers(model, 1)
    assert {layer.path for layer in layers} == names
    assert [layer.path.rpartition(".")[2] for layer in layers if layer.first] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
