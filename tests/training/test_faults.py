"""Runs that are killed at any moment, and checkpoints that are damaged in any way.

The large sweeps are ``make test-faults``; their counts stand in docs/reliability.md.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from deepen.records.training import TrainRecord
from deepen.training import train
from faults import Tally, codes_of_two, in_child, tally_of
from runs import Interrupted, Make, losses

CHANGES = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")
few_and_many = pytest.mark.parametrize(
    "points", [2, pytest.param(24, marks=pytest.mark.faults)], ids=["few", "many"]
)


@pytest.fixture(scope="module")
def tally() -> Any:
    """Count what was done and found; written into the docs if asked for."""
    yield from tally_of("training")


class Killer:
    """Kills its own process at the nth change of the disk or report of progress."""

    def __init__(self, nth: int) -> None:
        self.nth, self.count = nth, 0

    def moment(self, *_: object) -> None:
        self.count += 1
        if self.count == self.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            self.moment()
            return real(*given, **more)

        return call

    def train(self, recipe: Any) -> None:
        for name in CHANGES:
            setattr(os, name, self.before(getattr(os, name)))
        train(recipe, "cpt", progress=self.moment)


@few_and_many
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(
    recipe: Make, whole: TrainRecord, tmp_path: Path, tally: Tally, points: int
) -> None:
    model = tiny.read(Path(whole.output) / "model")
    reader, writer = os.pipe()

    def count() -> None:
        killer = Killer(0)
        killer.train(recipe(output="counted"))
        os.write(writer, str(killer.count).encode())

    assert in_child(count) == 0
    last = int(os.read(reader, 20))
    assert last > points
    for index in range(points):
        out = f"killed-{index}"
        killer = Killer(1 + (index + 1) * (last - 1) // points)
        ended = in_child(lambda k=killer, o=out: k.train(recipe(output=o)))  # type: ignore[misc]
        assert ended == -signal.SIGKILL
        left = tmp_path / out / "model"
        found = "a whole model" if left.exists() else "no model"
        finished = (tmp_path / out / "record.json").exists()
        assert not left.exists() or tiny.read(left) == model
        record = train(recipe(output=out), "cpt")
        assert losses(record) == losses(whole)
        assert tiny.read(left) == model
        step = record.resumed_from_step
        gone_on = f"gone on after step {step}" if step else "begun again"
        gone_on = f"{found}; {'found to be finished' if finished else gone_on}"
        tally("`kill -9` of `train` (6 steps, a checkpoint after each 2nd)", gone_on)


HARMS: dict[str, Callable[[Path], object]] = {
    "emptied": lambda file: file.write_bytes(b""),
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one bit turned": lambda file: file.write_bytes(turned(file.read_bytes())),
    "removed": Path.unlink,
}


def turned(content: bytes) -> bytes:
    """Turn one bit in the middle."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.faults
def test_whatever_is_damaged_in_a_checkpoint_costs_its_steps_alone(
    recipe: Make, whole: TrainRecord, tmp_path: Path, tally: Tally
) -> None:

    def progress(stage: str, share: float) -> None:
        if stage.startswith("cpt") and share >= 5 / 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe(output="broken"), "cpt", progress=progress)
    left = tiny.read(tmp_path / "broken")
    files = sorted(file.name for file in (tmp_path / "broken/checkpoints/checkpoint-4").iterdir())
    assert {"model.safetensors", "optimizer.pt", "complete.json"} < {*files}
    resumed: Counter[int | None] = Counter()
    for name in files:
        for harm, do in HARMS.items():
            out = tmp_path / f"{name} {harm}"
            for file, content in left.items():
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                (out / file).write_bytes(content)
            do(out / "checkpoints/checkpoint-4" / name)
            record = train(recipe(output=out.name), "cpt")
            assert losses(record) == losses(whole)
            resumed[record.resumed_from_step] += 1
            found = f"gone on after step {record.resumed_from_step}"
            tally(f"a file of the newest checkpoint {harm}", found)
            for step in (2, 4):
                do_again = out / f"checkpoints/checkpoint-{step}"
                assert not do_again.exists()
    assert set(resumed) == {2}


@pytest.mark.faults
def test_two_runs_at_one_output_are_one(recipe: Make, whole: TrainRecord, tally: Tally) -> None:
    for index in range(10):
        asked = recipe(output=f"both-{index}")
        codes = codes_of_two(lambda asked=asked: train(asked, "cpt"))
        # One that starts after the other has ended finds a finished run.
        assert codes in ([0, 2], [0, 0])
        assert losses(train(asked, "cpt")) == losses(whole)
        tally("two `train` at one output at once", f"exit codes {codes[0]} and {codes[1]}")
