"""Trained neurons: they alone change, they learn as in a plain loop, and a kill changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset

import shrink
import tiny
from cases import CASES
from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth.widen import widen
from deepen.planning.partial import neuron_parameters
from deepen.training import train
from deepen.training.data.order import steps_of
from deepen.training.data.packed import load_packed
from deepen.training.data.sources import load_sources
from deepen.training.engine.schedule import Schedule
from deepen.training.freeze import adapt
from deepen.training.phases import job
from runs import Make, interrupted, losses

NEURONS = 5
FAMILIES = ["llama-biased", "gpt2", "gemma3_text", "phi3", "gptj"]


def base_of(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save a tiny checkpoint that was not grown."""
    if family in tiny.FAMILIES:
        return tiny.save(folder, family, dtype=dtype)
    model_type, settings = CASES[family]
    shrink.model(model_type, **settings).to(dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("llama-biased", "bfloat16"),
        *((family, "float32") for family in FAMILIES),
        *(
            pytest.param(family, "bfloat16", marks=pytest.mark.slow)
            for family in FAMILIES
            if family != "llama-biased"
        ),
    ],
)
def test_only_the_new_neurons_change(
    family: str, precision: str, recipe: Make, tmp_path: Path
) -> None:
    # Float32 on the disk: what is frozen must keep bits that bfloat16 in memory does not hold.
    base = base_of(tmp_path / "base", family, torch.float32)
    widen(base, tmp_path / "wider", NEURONS)
    asked = recipe(model=tmp_path / "wider", neurons=NEURONS, precision=precision)
    record = train(asked, "cpt")
    old, new = open_model(tmp_path / "wider"), open_model(Path(asked.output) / "model")
    assert record.trainable_parameters == neuron_parameters(old, NEURONS)
    assert record.parameters == tiny.load(tmp_path / "wider").num_parameters()
    device, ffn = torch.device("cpu"), ("gate", "up", "ffn_output")
    for index in range(old.depth):
        before, after = old.block(index, device), new.block(index, device)
        for name, spec in old.anatomy.block.items():
            changed = before[name] != after[name]
            if spec.role not in ffn or (spec.role == "ffn_output" and spec.bias):
                assert not changed.any(), name
            elif spec.role == "ffn_output":
                assert not changed[:, :-NEURONS].any()
                assert changed[:, -NEURONS:].float().mean() > 0.9
            else:
                assert not changed[:-NEURONS].any()
                assert changed[-NEURONS:].float().mean() > 0.9
    for name in old.anatomy.outside:
        assert torch.equal(as_bytes(old.source.load(name)), as_bytes(new.source.load(name)))
    card = (Path(asked.output) / "model" / "README.md").read_text()
    assert f"the last {NEURONS} neurons of every FFN\n" in card


def test_they_learn_as_if_the_rest_of_each_gradient_were_zero(
    recipe: Make, llama: Path, tmp_path: Path
) -> None:
    widen(llama, tmp_path / "wider", NEURONS)
    settings = {"schedule": "constant", "warmup": 0, "max_gradient_norm": 0, "weight_decay": 0}
    asked = recipe(model=tmp_path / "wider", neurons=NEURONS, **settings)
    found = losses(train(asked, "cpt"))

    def masked(module: Any) -> list[nn.Parameter]:
        """Let whole matrices train, with gradients of the last neurons alone."""
        trained = []
        for block in module.model.layers:
            for layer in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                mask = torch.zeros_like(layer.weight)
                rows = layer is not block.mlp.down_proj
                (mask[-NEURONS:] if rows else mask[:, -NEURONS:]).fill_(1)
                layer.weight.register_hook(lambda gradient, mask=mask: gradient * mask)
                trained.append(layer.weight)
        return trained

    assert found == pytest.approx(plain(asked, masked), rel=1e-5)


def plain(recipe: Any, choose: Any) -> list[float]:
    """Return the losses of a textbook's loop."""
    asked = recipe.resolved("cpt")
    module = tiny.load(Path(asked.model))
    trained = choose(module)
    data, training = asked.data, asked.training
    rows, mixture = load_sources(
        data,
        lambda d: load_packed(
            d, training, tiny.tokenizer(), Path(asked.output) / "tokens", lambda *_: None
        ),
        ConcatDataset,
    )
    steps = steps_of(training, data.sequence_length, mixture, data.seed)
    order = list(Schedule(training, steps, data.sequence_length, mixture, data.seed).order)
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), weight_decay=0)
    found = []
    for step in range(steps):
        chosen = order[step * training.batch_size : (step + 1) * training.batch_size]
        ids = torch.stack([torch.as_tensor(rows[i]["input_ids"]) for i in chosen])
        loss = module(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        module.zero_grad()
        found.append(loss.item())
    return found


def test_a_killed_run_goes_on_and_saves_the_neurons_alone(recipe: Make) -> None:
    settings = {"neurons": NEURONS, "keep_checkpoints": True}
    expected = train(recipe(output="whole", **settings), "cpt")
    record = interrupted(recipe, 4, **settings)
    assert losses(record) == losses(expected)
    outs = [Path(r.output) for r in (record, expected)]
    weights = [tiny.read(out / "model")["model.safetensors"] for out in outs]
    assert weights[0] == weights[1]
    saved = outs[0] / "checkpoints" / "checkpoint-6" / "model.safetensors"
    assert saved.stat().st_size < 4 * record.trainable_parameters + 20_000


def test_weight_decay_leaves_what_is_frozen(
    recipe: Make, grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[Any] = []

    def keep(module: Any, *args: Any) -> None:
        adapt(module, *args)
        modules.append(module)

    monkeypatch.setattr(job, "adapt", keep)
    train(recipe(neurons=NEURONS, weight_decay=10.0), "cpt")
    before = FolderSource(grown).load("model.layers.0.mlp.up_proj.weight").float()
    assert torch.equal(modules[0].model.layers[0].mlp.up_proj.frozen, before[:-NEURONS])


def test_refusals(recipe: Make, grown: Path, tmp_path: Path) -> None:
    def refused(**settings: Any) -> str:
        with pytest.raises(DeepenError) as error:
            train(recipe(**settings), "cpt")
        assert not (Path(recipe().output) / "model").exists()
        return str(error.value)

    assert "leaves none of the 40 neurons" in refused(neurons=40)
    assert "leave out training.block_rate_decay" in refused(neurons=4, block_rate_decay=0.5)
    mixture = base_of(tmp_path / "mixture", "mixtral")
    assert "has experts" in refused(model=mixture, neurons=4)
