"""A killed run goes on as if nothing had happened, to the last bit."""

import os
import shutil
import signal
from pathlib import Path

import pytest

import tiny
from deepen.common.errors import DeepenError
from deepen.records.training import TrainRecord
from deepen.training import train
from faults import in_child
from runs import Interrupted, Make, interrupted, losses


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
def test_any_step_may_be_the_last(recipe: Make, whole: TrainRecord, step: int) -> None:
    record = interrupted(recipe, step)
    assert losses(record) == losses(whole)
    # A log line comes before its step's checkpoint.
    assert record.resumed_from_step == ((step - 1) // 2 * 2 or None)
    model = Path(record.output) / "model" / "model.safetensors"
    assert model.read_bytes() == (Path(whole.output) / "model" / model.name).read_bytes()
    walls = [point.wall_seconds for point in record.curve]
    assert walls == sorted(walls)


def test_means_over_several_steps_are_the_same_too(recipe: Make) -> None:
    settings = {"log_every": 4, "save_every": 3}
    expected = train(recipe(output="whole", **settings), "cpt")
    assert losses(interrupted(recipe, 4, **settings)) == losses(expected)


def test_a_half_written_checkpoint_is_passed_over(recipe: Make, whole: TrainRecord) -> None:
    def progress(stage: str, share: float) -> None:
        if stage.startswith("cpt") and share >= 5 / 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe(), "cpt", progress=progress)
    checkpoints = Path(recipe().output) / "checkpoints"
    last = checkpoints / "checkpoint-4"
    (last / "complete.json").unlink()
    (last / "optimizer.pt").write_bytes(b"half")
    record = train(recipe(), "cpt")
    assert record.resumed_from_step == 2
    assert losses(record) == losses(whole)


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    recipe: Make, whole: TrainRecord
) -> None:
    def progress(stage: str, share: float) -> None:
        if stage.startswith("cpt") and share >= 5 / 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe(), "cpt", progress=progress)
    checkpoints = Path(recipe().output) / "checkpoints"
    (checkpoints / "checkpoint-4" / "optimizer.pt").unlink()
    told: list[str] = []
    record = train(recipe(), "cpt", tell=told.append)
    assert "Passing over checkpoint-4, which is damaged: optimizer.pt is missing." in told
    assert record.resumed_from_step == 2
    assert losses(record) == losses(whole)


@pytest.mark.parametrize(
    ("share", "told"), [(1 / 6, "starts from the first step"), (5 / 6, "goes on after step 4")]
)
def test_whatever_ends_a_run_says_what_is_kept(recipe: Make, share: float, told: str) -> None:
    def progress(stage: str, done: float) -> None:
        if stage.startswith("cpt") and done >= share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as ended:
        train(recipe(), "cpt", progress=progress)
    assert ended.value.__notes__ == [f"the same command {told}"]


def test_a_second_run_on_one_output_is_refused_while_the_first_one_runs(recipe: Make) -> None:
    refused: list[str] = []

    def progress(stage: str, share: float) -> None:
        if stage.startswith("cpt") and not refused:
            with pytest.raises(DeepenError) as refusal:
                train(recipe(), "cpt", resume=False)
            refused.append(str(refusal.value))

    record = train(recipe(), "cpt", progress=progress)
    assert "Another run" in refused[0]
    assert train(recipe(), "cpt").curve == record.curve


@pytest.mark.parametrize("content", ["", "{", '{"stage": "cpt"}'])
def test_a_damaged_record_is_one_sentence(recipe: Make, content: str) -> None:
    train(recipe(max_steps=1), "cpt")
    (Path(recipe().output) / "record.json").write_text(content)
    with pytest.raises(DeepenError, match=r"record.json' is damaged .* without resuming"):
        train(recipe(max_steps=1), "cpt")


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["model", "checkpoints"])
def test_a_folder_of_something_else_is_let_be(recipe: Make, resume: bool, name: str) -> None:
    mine = Path(recipe().output) / name / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(DeepenError, match="no run's folder"):
        train(recipe(), "cpt", resume=resume)
    assert mine.is_file()
    mine.unlink()  # an empty folder is what a run leaves that was killed as it began
    assert train(recipe(max_steps=1), "cpt", resume=resume).steps == 1


def test_a_record_whose_model_is_gone_is_no_finished_run(recipe: Make) -> None:
    train(recipe(max_steps=1), "cpt")
    shutil.rmtree(Path(recipe().output) / "model")
    with pytest.raises(DeepenError, match="no longer there; start the run again without"):
        train(recipe(max_steps=1), "cpt")


def test_a_run_killed_after_its_last_step_is_finished(recipe: Make) -> None:
    expected = train(recipe(keep_checkpoints=True), "cpt")
    folder = Path(expected.output)
    model = tiny.read(folder / "model")
    (folder / "record.json").unlink()
    (folder / "model" / "config.json").unlink()
    record = train(recipe(keep_checkpoints=True), "cpt")
    assert record.resumed_from_step == 6
    assert record.curve == expected.curve
    assert record.step_time == expected.step_time
    assert tiny.read(folder / "model") == model


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_kill_9(recipe: Make, whole: TrainRecord, tmp_path: Path, stage: str) -> None:
    data = {}
    if stage == "sft":
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b c"}\n' * 9)
        data = {"path": str(tmp_path / "rows.jsonl")}
    asked = recipe(data)

    def progress(told: str, share: float) -> None:
        if told.startswith(stage) and share >= 4 / 6:
            os.kill(os.getpid(), signal.SIGKILL)

    ended = in_child(lambda: train(asked, stage, progress=progress))  # type: ignore[arg-type]
    assert ended == -signal.SIGKILL
    expected = whole if stage == "cpt" else train(recipe(data, output="whole"), "sft")
    record = train(asked, stage)  # type: ignore[arg-type]
    assert record.resumed_from_step == 2
    assert losses(record) == losses(expected)
    weights = [tiny.read(Path(r.output) / "model")["model.safetensors"] for r in (record, expected)]
    assert weights[0] == weights[1]
