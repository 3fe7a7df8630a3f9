"""A run in phases is what a plain loop does, holds no more than it needs, and survives a kill."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import ExportableState

import tiny
from deepen.common.errors import DeepenError
from deepen.records.growth import read_lineage
from deepen.records.training import TrainRecord
from deepen.training import train
from deepen.training.data.order import Order
from deepen.training.data.packed import load_packed
from deepen.training.recipe import Recipe
from runs import Interrupted, Make, interrupted, losses

NEW_THEN_ALL = [
    {"trains": "new_blocks", "steps": 0.5},
    {"trains": "everything", "learning_rate": 1e-3, "ramp": 2},
]
"""Three steps each of the recipe's six."""
PLAIN = {"schedule": "constant", "warmup": 0, "save_dtype": "float32", "trunk_cache": False}


def weights(record: TrainRecord) -> dict[str, Tensor]:
    return load_file(Path(record.output) / "model" / "model.safetensors")


def checkpoint(recipe: Recipe, step: int) -> dict[str, Tensor]:
    return load_file(Path(recipe.output) / "checkpoints" / f"checkpoint-{step}/model.safetensors")


def same(one: TrainRecord, other: TrainRecord) -> bool:
    """Whether two runs have the same losses and the same model, to the last bit."""
    return losses(one) == losses(other) and all(
        torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items()
    )


def batches(recipe: Recipe, steps: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a run."""
    resolved, folder = recipe.resolved("cpt"), Path(recipe.output).parent / "tokens"
    tokenizer = AutoTokenizer.from_pretrained(recipe.model)
    data = load_packed(resolved.data, resolved.training, tokenizer, folder, lambda *_: None)
    order = iter(Order(len(data), 4 * steps, recipe.seed))
    for _ in range(steps):
        rows = [data[index] for index in itertools.islice(order, 4)]
        yield {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def by_hand(recipe: Recipe, plan: list[tuple[float, set[str], float]]) -> dict[str, Tensor]:
    """Train with torch alone.

    Args:
        recipe: Model, data and weight decay.
        plan: For each step its learning rate, what trains, and the share of the rate that what was
            not among the first step's has.
    """
    model = tiny.load(Path(recipe.model)).float().train()
    first, parameters = plan[0][1], dict(model.named_parameters())
    made: dict[str, Any] = {}
    for (rate, names, share), batch in zip(plan, batches(recipe, len(plan)), strict=True):
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)
        model(**batch).loss.backward()
        trained = [parameters[name] for name in sorted(names)]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for name in sorted(names):
            decay = 0.0 if "norm" in name else 0.1
            settings: Any = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay}
            own = made.setdefault(name, torch.optim.AdamW([parameters[name]], **settings))
            own.param_groups[0]["lr"] = rate * (1 if name in first else share)
            own.step()
        model.zero_grad()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def test_every_step_is_that_of_a_plain_loop(recipe: Make, grown: Path) -> None:
    asked = recipe(phases=NEW_THEN_ALL, save_every=6, keep_checkpoints=True, **PLAIN)
    record = train(asked, "cpt")
    every = {*dict(tiny.load(grown).named_parameters())}
    new = {name for name in every if name.startswith(("model.layers.4.", "model.layers.6."))}
    first, then = [(1e-2, new, 1.0)] * 3, [(1e-3, every, share) for share in (0.0, 0.5, 1.0)]
    expected = by_hand(asked, first + then)
    for name, tensor in weights(record).items():
        # A step is 1e-2, or 1e-3; what has hardly a gradient yet shows how sums are rounded.
        assert torch.allclose(tensor, expected[name], atol=2e-5), name
    # Until then no byte of the base has moved.
    before = {name: t.float() for name, t in tiny.load(grown).state_dict().items()}
    assert checkpoint(asked, 3).keys() == new
    at_border = by_hand(asked, first)
    for name in every - new:
        assert torch.equal(at_border[name], before[name])
        assert not torch.equal(weights(record)[name], before[name]), name


def test_the_first_phase_is_a_run_of_its_own(recipe: Make) -> None:
    """Schedule and warm-up included; and the second begins with another rate, without warm-up."""
    settings = {"warmup": 2, "save_every": 6, "keep_checkpoints": True}
    asked = recipe(phases=NEW_THEN_ALL, **settings)
    record = train(asked, "cpt")
    alone = train(recipe(output="alone", max_steps=3, trains="new_blocks", **settings), "cpt")
    assert losses(record)[:3] == losses(alone)
    assert record.curve[:3] == [
        point.model_copy(update={"wall_seconds": old.wall_seconds})
        for point, old in zip(alone.curve, record.curve, strict=False)
    ]
    for name, tensor in checkpoint(asked, 3).items():
        assert torch.equal(tensor, checkpoint(recipe(output="alone"), 3)[name]), name
    assert record.curve[3].learning_rate == pytest.approx(1e-3)


def test_a_kill_in_either_phase_changes_nothing(recipe: Make) -> None:
    settings = {"phases": NEW_THEN_ALL, "micro_batch_size": 2, "average_checkpoints": 2}
    expected = train(recipe(output="whole", **settings), "cpt")
    # Checkpoints are those of steps 2, 3 (the border), 4 and 6; a log line comes before them.
    for step, resumed in ((1, None), (3, 2), (4, 3), (6, 4)):
        record = interrupted(recipe, step, output=f"killed-{step}", **settings)
        assert same(record, expected)
        assert record.resumed_from_step == resumed
        assert record.phases == expected.phases
        assert record.averaged_steps == [4, 6]


def test_a_kill_between_phases_changes_nothing(recipe: Make) -> None:
    def tell(sentence: str) -> None:
        if sentence.startswith("Phase 2"):
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe(phases=NEW_THEN_ALL), "cpt", tell=tell)
    told: list[str] = []
    record = train(recipe(phases=NEW_THEN_ALL), "cpt", tell=told.append)
    assert [sentence.split(":")[0] for sentence in told] == ["Phase 2 of 2"]
    assert record.resumed_from_step == 3
    assert same(record, train(recipe(output="whole", phases=NEW_THEN_ALL), "cpt"))


def test_what_stops_training_keeps_its_weights_and_no_state(recipe: Make) -> None:
    phases = [{"trains": [4], "steps": 2}, {"trains": [6], "steps": 2}, {"trains": [4, 6]}]
    settings = {"phases": phases, "average_checkpoints": 3, "precision": "bfloat16"}
    asked = recipe(output="whole", keep_checkpoints=True, **settings)
    expected = train(asked, "cpt")
    assert same(interrupted(recipe, 4, **settings), expected)
    for at, blocks in ((2, {4}), (4, {4, 6})):
        assert {int(name.split(".")[2]) for name in checkpoint(asked, at)} == blocks
    after = checkpoint(asked, 4)
    assert all(torch.equal(after[name], held) for name, held in checkpoint(asked, 2).items())
    folder = Path(asked.output) / "checkpoints" / "checkpoint-6"
    states = torch.load(folder / "optimizer.pt")["state"].values()
    assert {int(state["step"]) for state in states} == {2, 4}
    assert [phase.trainable_parameters for phase in expected.phases] == [4656, 4656, 9312]


class Holds(TrainerCallback, ExportableState):
    """Counts what has a gradient and what has states, step by step; may stop the run."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.held, self.begun = stop, list[tuple[int, int]](), 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun += 1

    def on_optimizer_step(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
        gradients = sum(p.grad is not None for p in model.parameters())
        self.held.append((gradients, len(optimizer.state)))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step == self.stop

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"held": self.held}}


def test_gradients_and_states_exist_from_their_phase_on(recipe: Make, grown: Path) -> None:
    watcher, every = Holds(), len(dict(tiny.load(grown).named_parameters()))
    train(recipe(phases=NEW_THEN_ALL), "cpt", callbacks=[watcher])
    assert [tuple(pair) for pair in watcher.held] == [(18, 18)] * 3 + [(every, every)] * 3
    assert watcher.begun == 2


@pytest.mark.parametrize("stop", [3, 5])
def test_a_callback_may_stop_the_run_in_any_phase(recipe: Make, grown: Path, stop: int) -> None:
    record = train(recipe(phases=NEW_THEN_ALL), "cpt", callbacks=[Holds(stop)])
    model = Path(record.output) / "model"
    assert record.steps == stop == sum(phase.steps for phase in record.phases)
    assert record.trainable_blocks == ([4, 6] if stop < 5 else [*range(8)])
    lineage = read_lineage(json.loads((model / "config.json").read_text()))
    assert lineage is not None
    assert lineage.trainings[0].everything == (stop == 5)
    # Stopped where the first phase ends, the run does not go on with the second.
    before, after = (load_file(folder / "model.safetensors") for folder in (grown, model))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("model.layers.0.") for name in moved) == (stop == 5)


def test_the_mean_reaches_back_over_a_border(recipe: Make, grown: Path) -> None:
    settings = {"phases": NEW_THEN_ALL, "keep_checkpoints": True, **PLAIN}
    asked = recipe(average_checkpoints=3, **settings)
    record = train(asked, "cpt")
    assert record.averaged_steps == [2, 4, 6]
    start = {name: tensor.float() for name, tensor in tiny.load(grown).state_dict().items()}
    for name, mean in weights(record).items():
        held = [checkpoint(asked, step).get(name, start[name]) for step in (2, 4, 6)]
        assert torch.equal(mean, torch.stack(held).double().mean(0).float()), name


def test_the_trunk_is_kept_as_long_as_it_is_frozen(recipe: Make) -> None:
    plain = train(recipe(output="plain", phases=NEW_THEN_ALL, trunk_cache=False), "cpt")
    told: list[str] = []
    record = train(recipe(phases=NEW_THEN_ALL, trunk_cache=True), "cpt", tell=told.append)
    assert same(record, plain)
    assert sum(sentence.startswith("Starting above the 4 ") for sentence in told) == 1
    assert record.trunk is not None
    # Only what the first phase draws, and the batch that is read ahead.
    assert (record.trunk.blocks, record.trunk.sequences, plain.trunk) == (4, 16, None)


def test_old_text_is_protected_in_every_phase(recipe: Make, corpus: Path) -> None:
    settings = {"protect": {"path": str(corpus), "max_tokens": 64}, **PLAIN}
    record = train(recipe(phases=NEW_THEN_ALL, **settings), "cpt")
    alone = train(recipe(output="alone", **settings), "cpt")
    assert record.protect is not None
    assert alone.protect is not None
    # Both read it once a phase, and the second protects every linear layer of the base as well.
    assert record.protect.flops == 2 * alone.protect.flops
    assert (alone.protect.layers, record.protect.layers) == (4, 46)
    directions = alone.protect.directions, record.protect.directions
    assert all(0 < share < 1 for share in directions)


def test_fine_tuning_has_phases_too(recipe: Make, tmp_path: Path, grown: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "What is it?", "completion": "It is water."}\n' * 24)
    record = train(recipe({"path": str(rows)}, phases=NEW_THEN_ALL), "sft")
    assert [phase.steps for phase in record.phases] == [3, 3]
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights(record)[name], load_file(grown / "model.safetensors")[name])


def test_the_record_adds_up_and_the_card_tells(recipe: Make) -> None:
    record = train(recipe(phases=NEW_THEN_ALL), "cpt")
    first, then = record.phases
    assert (first.what, then.what) == ("blocks 4, 6", "everything")
    assert (first.first_step, then.first_step) == (1, 4)
    assert first.tokens + then.tokens == record.tokens
    assert record.flops_per_token == (first.flops_per_token + then.flops_per_token) / 2
    alone, whole = (
        train(recipe(output=trains, max_steps=1, trains=trains), "cpt")
        for trains in ("new_blocks", "everything")
    )
    for phase, run in ((first, alone), (then, whole)):
        assert phase.flops_per_token == run.flops_per_token
        assert phase.trainable_parameters == run.trainable_parameters
    card = (Path(record.output) / "model" / "README.md").read_text()
    assert "In phases: blocks 4, 6 for 3 steps, at a learning rate of up to 0.01; then" in card
    assert not alone.phases


def test_one_phase_is_a_run_at_its_rate(recipe: Make) -> None:
    phase = {"trains": "everything", "learning_rate": 1e-3}
    record = train(recipe(phases=[phase]), "cpt")
    assert same(record, train(recipe(output="plain", **phase), "cpt"))


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_divided_weights_are_refused(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(DeepenError, match=r"training.phases .* FSDP and DeepSpeed divide"):
        train(recipe(phases=NEW_THEN_ALL), "cpt")
    assert not Path(recipe().output).exists()


def test_phases_that_do_not_fit_leave_nothing(recipe: Make) -> None:
    with pytest.raises(DeepenError, match=r"Phase 2 of training.phases has none of the run's 1 st"):
        train(recipe(max_steps=1, phases=[{"steps": 1}, {}]), "cpt")
    assert not (Path(recipe().output) / "recipe.yaml").exists()
