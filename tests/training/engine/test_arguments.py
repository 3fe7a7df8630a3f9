"""The recipe in the engines' words: batches divide, and learning rates take their course."""

from dataclasses import make_dataclass
from pathlib import Path

import pytest

from deepen.common.errors import DeepenError
from deepen.training import train
from deepen.training.engine.arguments import arguments, check_trackers, micro_batches
from deepen.training.recipe import TrainingConfig
from runs import Make


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [(64, 4, 8, (4, 2)), (64, None, 8, (8, 1)), (64, None, 1, (64, 1)), (8, 8, 1, (8, 1))],
)
def test_a_step_is_divided(
    batch: int, micro: int | None, processes: int, expected: tuple[int, int]
) -> None:
    training = TrainingConfig(batch_size=batch, micro_batch_size=micro)
    assert micro_batches(training, processes) == expected


@pytest.mark.parametrize(("batch", "micro", "processes"), [(8, None, 3), (8, 4, 4), (12, 4, 2)])
def test_what_does_not_divide_is_told(batch: int, micro: int | None, processes: int) -> None:
    training = TrainingConfig(batch_size=batch, micro_batch_size=micro)
    with pytest.raises(DeepenError, match=f"batch_size={batch} is not a multiple"):
        micro_batches(training, processes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wandbb", "Unknown tracker .* did you mean 'wandb'"),
        (["tensorboard", "none"], "Unknown tracker .* 'none'"),
        (["neptune"], "tracker 'neptune' .* is not installed"),
    ],
)
def test_a_tracker_that_is_not_to_be_had_is_told_before_training(
    recipe: Make, given: str | list[str], said: str
) -> None:
    with pytest.raises(DeepenError, match=said):
        train(recipe(report_to=given), "cpt")
    check_trackers(TrainingConfig(report_to="none"))
    check_trackers(TrainingConfig(report_to=[]))
    check_trackers(TrainingConfig())


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_recomputation_is_off_whatever_transformers_calls_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = make_dataclass("TrainingArguments", [(name, bool)])
    monkeypatch.setattr("transformers.TrainingArguments", renamed)
    assert arguments(TrainingConfig(), "sft", 10, 0, tmp_path)[name] is False


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_learning_rates_take_their_course(recipe: Make, schedule: str) -> None:
    asked = recipe(
        max_steps=20, save_every=20, schedule=schedule, warmup=0.2, decay=0.25, learning_rate=1.0
    )
    rates = [point.learning_rate for point in train(asked, "cpt").curve]
    # transformers warms up from nothing, but with wsd from where it ends.
    first = 0.1 if schedule == "wsd" else 0.0
    assert rates[:5] == pytest.approx([first + (1 - first) * i / 4 for i in range(5)])
    if schedule == "constant":
        assert set(rates[4:]) == {1.0}
    elif schedule == "wsd":
        assert rates[4:15] == pytest.approx([1.0] * 11)
        assert rates[15:] == sorted(rates[15:], reverse=True)
        assert 0.1 <= rates[-1] < 0.3
    else:
        assert rates[4:] == sorted(rates[4:], reverse=True)
        assert rates[12] == pytest.approx(0.55, abs=1e-6)  # half way between peak and a tenth
        assert 0.1 <= rates[-1] < 0.12
