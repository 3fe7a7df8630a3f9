"""A step whose loss or gradient is no number is named, with the sequences that it had."""

from pathlib import Path

import pytest
import torch

from deepen.common.errors import DeepenError
from deepen.training.engine.finite import check_finite
from deepen.training.engine.schedule import Schedule
from deepen.training.recipe import TrainingConfig

NAN, INF = float("nan"), float("inf")


def check(folder: Path, losses: list[float], norm: float | None, batch_size: int = 2) -> Schedule:
    schedule = Schedule(TrainingConfig(batch_size=batch_size), 4, 16, 40, seed=0)
    check_finite([torch.tensor(loss) for loss in losses], norm, 3, schedule, folder)
    return schedule


@pytest.mark.parametrize("norm", [0.0, 1e30, None])
def test_numbers_pass(tmp_path: Path, norm: float | None) -> None:
    check(tmp_path, [1.0, 2.0], norm)


@pytest.mark.parametrize(
    ("losses", "norm", "said"),
    [
        ([1.0, NAN], 1.0, "The loss is nan at step 3"),
        ([INF, NAN], NAN, "The loss is inf at step 3"),
        ([1.0], -INF, "The gradient's length is -inf at step 3"),
    ],
)
def test_what_is_no_number_is_told(
    tmp_path: Path, losses: list[float], norm: float, said: str
) -> None:
    first, second = check(tmp_path, [1.0], 1.0).batch(3)
    where = rf"\(batch 3: sequences {first}, {second} of the data\)"
    with pytest.raises(DeepenError, match=f"{said} {where}.* and no checkpoint had been written;"):
        check(tmp_path, losses, norm)


def test_long_batches_are_cut_and_the_last_whole_checkpoint_named(tmp_path: Path) -> None:
    for step, whole in ((8, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "complete.json").touch()
    with pytest.raises(DeepenError, match=r"(\d+, ){7}\d+ and more of .*checkpoint is .*-10;"):
        check(tmp_path, [NAN], None, batch_size=9)
