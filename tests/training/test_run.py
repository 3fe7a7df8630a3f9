"""Whole runs: the losses of a plain loop, frozen bits, records, and refusals."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import tiny
from deepen.common.errors import DeepenError
from deepen.records.growth import read_lineage
from deepen.records.training import TrainRecord
from deepen.training import train
from deepen.training.data.order import Order
from deepen.training.recipe import Recipe
from runs import Make, losses


def plain_loop(recipe: Recipe, trained: tuple[int, ...]) -> tuple[list[float], Any]:
    """Train as a textbook does: float32, AdamW, no engine."""
    data, training = recipe.data, recipe.training
    model = tiny.load(Path(recipe.model))
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(tuple(f"model.layers.{i}." for i in trained)))
    tokenizer = tiny.tokenizer()
    text = Path(str(data.path)).read_text()
    ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    sequences = ids[: len(ids) // data.sequence_length * data.sequence_length]
    sequences = sequences.view(-1, data.sequence_length)
    wanted = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in wanted if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95))
    steps, batch = training.max_steps, training.batch_size
    order = list(Order(len(sequences), steps * batch, recipe.seed))
    step_losses = []
    for step in range(steps):
        rows = sequences[order[step * batch : (step + 1) * batch]]
        logits = model(rows).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step_losses.append(loss.item())
    return step_losses, model


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_pre_training_is_the_plain_loop(recipe: Make, micro_batch_size: int | None) -> None:
    asked = recipe(schedule="constant", warmup=0, micro_batch_size=micro_batch_size)
    record = train(asked, "cpt")
    expected, model = plain_loop(asked, (4, 6))
    assert losses(record) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.05
    trained = load_file(Path(asked.output) / "model" / "model.safetensors")
    name = "model.layers.6.mlp.down_proj.weight"
    assert torch.allclose(trained[name].float(), model.get_parameter(name), rtol=0.02, atol=1e-4)


def test_frozen_tensors_keep_their_stored_bits(recipe: Make, grown: Path) -> None:
    asked = recipe()
    train(asked, "cpt")
    before = load_file(grown / "model.safetensors")
    after = load_file(Path(asked.output) / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == torch.bfloat16
        new = name.startswith(("model.layers.4.", "model.layers.6."))
        assert torch.equal(tensor, after[name]) != new, name


def test_the_trained_model_is_an_ordinary_checkpoint(recipe: Make, grown: Path) -> None:
    asked = recipe(save_dtype="float32")
    train(asked, "cpt")
    folder = Path(asked.output) / "model"
    assert tiny.load(folder).dtype == torch.float32
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert torch.equal(tiny.tokens(folder), tiny.tokens(grown))
    lineage = read_lineage(json.loads((folder / "config.json").read_text()))
    assert lineage is not None
    assert lineage.new_blocks == [4, 6]
    card = (folder / "README.md").read_text()
    assert "not been trained" not in card
    assert "How to train" not in card
    assert "## Continual pre-training" in card
    assert "- New blocks, counted from 0: 4, 6" in card
    # What was stored in bfloat16 and is frozen has the same values in float32.
    stored, now = (load_file(f / "model.safetensors") for f in (grown, folder))
    assert torch.equal(stored["model.norm.weight"].float(), now["model.norm.weight"])


def test_the_record_adds_up(recipe: Make, grown: Path) -> None:
    sentences: list[str] = []
    seen: list[tuple[str, float]] = []
    record = train(
        recipe(max_steps=12),
        "cpt",
        tell=sentences.append,
        progress=lambda stage, share: seen.append((stage, share)),
    )
    model = tiny.load(grown)
    new = sum(p.numel() for i in (4, 6) for p in model.model.layers[i].parameters())
    assert (record.parameters, record.trainable_parameters) == (model.num_parameters(), new)
    assert record.trainable_blocks == [4, 6]
    assert f"{new:,} of {model.num_parameters():,} parameters" in sentences[0]
    assert [point.step for point in record.curve] == list(range(1, 13))
    assert [point.tokens for point in record.curve] == [128 * step for step in range(1, 13)]
    assert record.tokens == 12 * 4 * 32
    times = record.step_time
    parts = times.forward_seconds + times.backward_seconds + times.optimizer_seconds
    assert 0 < parts < 1.5 * times.total_seconds
    assert record.tokens_per_second == pytest.approx(128 / times.total_seconds, rel=3)
    rate = record.flops_per_token * record.tokens_per_second / record.matmul_flops_per_second
    assert record.utilisation == pytest.approx(rate)
    walls = [point.wall_seconds for point in record.curve]
    assert walls == sorted(walls)
    assert record.wall_seconds == walls[-1]
    assert record.recipe["stage"] == "cpt"
    assert seen[-1][1] == 1.0
    assert seen[-1][0].startswith("cpt: loss ")
    stored = (Path(record.output) / "record.json").read_text()
    assert TrainRecord.model_validate_json(stored) == record


def test_a_finished_run_returns_its_record_and_another_recipe_is_refused(recipe: Make) -> None:
    record = train(recipe(), "cpt")
    folder = Path(record.output)
    before = tiny.read(folder)
    assert train(recipe(), "cpt") == record
    assert tiny.read(folder) == before
    assert not (folder / "checkpoints").exists()
    with pytest.raises(DeepenError, match=r"training.learning_rate was 0.01, is 0.02"):
        train(recipe(learning_rate=0.02), "cpt")
    other = train(recipe(learning_rate=0.02), "cpt", resume=False)
    assert losses(other) != losses(record)


def test_same_seed_same_losses_and_no_global_state_changes(recipe: Make) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = train(recipe(output="a"), "cpt")
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert losses(train(recipe(output="b"), "cpt")) == losses(first)
    assert losses(train(recipe({"seed": 7}, output="c"), "cpt")) != losses(first)


def test_every_model_sees_the_same_data(recipe: Make, llama: Path, tmp_path: Path) -> None:
    shared = {"cache": str(tmp_path / "shared")}
    grown_run = train(recipe(shared), "cpt")
    base_run = train(recipe(shared, "base", llama, trains="everything"), "cpt")
    # The grown model computes what the base computes until its first update.
    assert losses(grown_run)[0] == pytest.approx(losses(base_run)[0], rel=1e-5)
    assert base_run.trainable_parameters == base_run.parameters
    assert len(list((tmp_path / "shared").glob("*.bin"))) == 1


def test_fine_tuning_learns_the_answers(recipe: Make, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} plus {i} is", "completion": " many"} for i in range(10)]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": str(tmp_path / "qa.jsonl"), "sequence_length": 64}
    record = train(recipe(data, max_steps=None, epochs=8), "sft")
    assert record.steps == 20
    assert losses(record)[-1] < 0.7 * losses(record)[0]
    tokenizer = tiny.tokenizer()
    drawn = list(Order(10, 80, 0))
    each = [
        len(tokenizer(r["prompt"])["input_ids"] + tokenizer(" many")["input_ids"]) + 1 for r in rows
    ]
    assert record.tokens == sum(each[i] for i in drawn)
    # The first loss is that of the answers alone.
    model, total, count = tiny.load(Path(str(recipe().model))), 0.0, 0
    for i in drawn[:4]:
        prompt = tokenizer(rows[i]["prompt"])["input_ids"]
        answer = [*tokenizer(" many")["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0]
        part = logits[len(prompt) - 1 : -1]
        total += cross_entropy(part, torch.tensor(answer), reduction="sum").item()
        count += len(answer)
    assert losses(record)[0] == pytest.approx(total / count, rel=1e-4)


def test_bfloat16_keeps_float32_weights_for_what_trains(recipe: Make, grown: Path) -> None:
    exact = train(recipe(output="float32"), "cpt")
    rough = train(recipe(output="bfloat16", precision="bfloat16", learning_rate=1e-2), "cpt")
    assert rough.precision == "bfloat16"
    assert losses(rough) == pytest.approx(losses(exact), rel=2e-2)
    assert losses(rough) != losses(exact)
    before = load_file(grown / "model.safetensors")
    after = load_file(Path(rough.output) / "model" / "model.safetensors")
    assert torch.equal(
        before["model.layers.5.mlp.up_proj.weight"], after["model.layers.5.mlp.up_proj.weight"]
    )


def test_tensorboard_has_the_run_s_losses(recipe: Make) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = train(recipe(report_to="tensorboard"), "cpt")
    events = EventAccumulator(str(Path(record.output) / "tensorboard"))
    events.Reload()
    values = [scalar.value for scalar in events.Scalars("train/loss")]
    assert values == pytest.approx(losses(record), rel=1e-6)


def test_a_loss_that_is_no_number_stops_the_run(recipe: Make) -> None:
    asked = recipe(learning_rate=1e30, warmup=0, schedule="constant", max_gradient_norm=0)
    with pytest.raises(DeepenError, match=r"is (nan|inf) at step 2 \(batch 2: sequences \d+, "):
        train(asked, "cpt")
    assert not (Path(asked.output) / "model").exists()


def test_a_model_that_the_last_step_broke_is_not_written(recipe: Make) -> None:
    asked = recipe(
        learning_rate=1e39, max_steps=1, warmup=0, schedule="constant", max_gradient_norm=0
    )
    with pytest.raises(DeepenError, match=r"left values in model\.\S+ that are not finite in BF16"):
        train(asked, "cpt")
    assert not (Path(asked.output) / "model").exists()
    assert not (Path(asked.output) / "record.json").exists()


@pytest.mark.parametrize(
    ("data", "training", "said"),
    [
        (
            {},
            {"max_steps": 10**7, "batch_size": 10**3, "micro_batch_size": 1},
            "10,000,000,000 sequences, more than",
        ),
        ({}, {"max_tokens": 10**15, "max_steps": None}, "sequences, more than"),
        (
            {"sequence_length": 64},
            {"batch_size": 10**6},
            r"at least .* GB.* training\.micro_batch_size",
        ),
    ],
)
def test_what_would_not_fit_is_told_before_it_is_allocated(
    recipe: Make, data: dict[str, Any], training: dict[str, Any], said: str
) -> None:
    with pytest.raises(DeepenError, match=said):
        train(recipe(data, **training), "cpt")


def test_adapters_that_the_machine_has_no_memory_for_are_not_made(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**9))
    with pytest.raises(DeepenError, match=r"the device has 1 GB; lower training\.lora\.rank"):
        train(recipe(lora={"rank": 10**5}), "cpt")


def test_the_last_good_checkpoint_is_kept_and_named(
    recipe: Make, whole: TrainRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepen.training.engine.trainers import CptTrainer

    original = CptTrainer.compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 4 else loss

    monkeypatch.setattr(CptTrainer, "compute_loss", poisoned)
    with pytest.raises(
        DeepenError, match=r"is nan at step 5 .*the last checkpoint is .*checkpoint-4"
    ):
        train(recipe(), "cpt")
    monkeypatch.undo()
    assert losses(train(recipe(), "cpt")) == losses(whole)


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Check that a refusal leaves no trace."""
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("data", "training", "said"),
    [
        ({"path": "nowhere.txt"}, {}, "There is no file 'nowhere.txt'"),
        ({"sequence_length": 129}, {}, "129 is longer than the 128 positions of tiny-grown"),
        ({}, {"trains": [9]}, "no block 9"),
        ({}, {"trains": []}, "Nothing would be trained"),
        ({}, {"neurons": 40}, "leaves none of the 40 neurons"),
    ],
)
def test_refusals_leave_nothing(
    recipe: Make, tmp_path: Path, data: dict[str, Any], training: dict[str, Any], said: str
) -> None:
    with nothing_left(tmp_path), pytest.raises(DeepenError, match=said):
        train(recipe(data, **training), "cpt")


def test_a_generation_config_that_keeps_a_model_from_loading_is_told_at_once(
    recipe: Make, grown: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(grown, tmp_path / "model")
    (model / "generation_config.json").write_text("[" * 9999)
    said = r"generation_config\.json of model cannot be read"
    with nothing_left(tmp_path), pytest.raises(DeepenError, match=said):
        train(recipe(model=model), "cpt")


def test_models_that_cannot_be_trained_are_refused(
    recipe: Make, llama: Path, grown: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(grown, tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with nothing_left(tmp_path):
        with pytest.raises(DeepenError, match="tiny-llama was not grown by deepen"):
            train(recipe(model=llama), "cpt")
        with pytest.raises(DeepenError, match="bare has no tokenizer that loads"):
            train(recipe(model=bare), "cpt")
        with pytest.raises(DeepenError, match="There is no folder"):
            train(recipe(model=tmp_path / "nowhere"), "cpt")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "somebody's").touch()
    with (
        nothing_left(tmp_path),
        pytest.raises(DeepenError, match=r"\(output\) exists and is no run's folder"),
    ):
        train(recipe(output="."), "cpt")


def test_a_disk_that_is_too_small_is_told_before_training(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DeepenError, match=r"has 0.00 GB free, and checkpoints"):
        train(recipe(), "cpt")
