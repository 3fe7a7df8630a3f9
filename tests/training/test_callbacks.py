"""A user's callbacks: called by the engine, stop a run, and keep their state over a kill."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

import deepen
from deepen.records.training import TrainRecord
from deepen.training import run, train
from runs import Interrupted, Make, losses


class Watcher(TrainerCallback, ExportableState):
    """Counts what it sees; stops after a number of logged losses and asks to save after a step."""

    def __init__(self, stop: int = 100, save: int = 100) -> None:
        self.stop, self.save, self.logged, self.events = stop, save, 0, list[str]()

    def on_init_end(self, *_: Any, **__: Any) -> None:
        self.events.append("init")

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        self.events.append(f"begin {sum(p.requires_grad for p in model.parameters())}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = control.should_save or state.global_step == self.save

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.events.append(f"save {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if "loss" in logs:
            self.logged += 1
            control.should_training_stop = control.should_training_stop or self.logged >= self.stop

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"logged": self.logged}}


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_the_engine_calls_them_and_the_run_is_the_same(
    recipe: Make, tmp_path: Path, stage: Any
) -> None:
    data = {}
    if stage == "sft":
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b c"}\n' * 9)
        data = {"path": str(tmp_path / "rows.jsonl")}
    watcher = Watcher(save=3)
    record = train(recipe(data), stage, callbacks=[watcher])
    assert watcher.events == ["init", "begin 18", "save 2", "save 3", "save 4", "save 6"]
    assert watcher.logged == record.steps == 6
    assert losses(record) == losses(train(recipe(data, output="without"), stage))
    # A finished run trains nothing, and calls nobody.
    again = Watcher()
    assert train(recipe(data), stage, callbacks=[again]) == record
    assert again.events == []


def test_a_run_that_is_stopped_tells_what_it_saw(
    recipe: Make, whole: TrainRecord, llama: Path
) -> None:
    said: list[str] = []
    record = train(recipe(), "cpt", callbacks=[Watcher(stop=4)], tell=said.append)
    assert said[-1] == "Stopped by a callback after step 4."
    assert (record.steps, record.tokens) == (4, 4 * 4 * 32)
    assert losses(record) == losses(whole)[:4]
    assert sum(source.sequences for source in record.sources) == 16
    assert sum(source.tokens for source in record.sources) == record.tokens
    model = Path(record.output) / "model"
    assert "- Budget: 4 steps, 512 tokens" in (model / "README.md").read_text()
    assert deepen.verify(llama, model).passed


def test_a_stop_between_two_log_lines_is_logged(recipe: Make) -> None:
    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 3

    record = train(recipe(log_every=5, save_every=5), "cpt", callbacks=[Stops()])
    assert [point.step for point in record.curve] == [3]


@pytest.mark.parametrize("killed_at", [2, 3, 7])
def test_state_survives_a_kill_and_a_stopped_run_stops_again(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    def progress(stage: str, share: float) -> None:
        if stage.startswith("cpt") and share >= killed_at / 6:
            raise Interrupted

    def publish(*_: Any, **__: Any) -> None:
        raise Interrupted

    expected = train(recipe(output="whole"), "cpt", callbacks=[Watcher(stop=4)])
    monkeypatch.setattr(run, "publish", publish)
    with pytest.raises(Interrupted):
        train(recipe(), "cpt", callbacks=[Watcher(stop=4)], progress=progress)
    monkeypatch.undo()
    watcher = Watcher(stop=4)
    record = train(recipe(), "cpt", callbacks=[watcher])
    assert record.resumed_from_step == (2 if killed_at > 2 else None)
    # The caller's own object goes on counting; there is no checkpoint after the step of the stop.
    assert watcher.logged == 4
    assert losses(record) == losses(expected)
    assert "save 4" not in watcher.events
