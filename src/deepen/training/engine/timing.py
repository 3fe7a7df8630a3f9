"""Where the time of an optimizer step goes, and how long a run takes over all its restarts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from deepen.training.engine.measure import Clock
from deepen.training.engine.schedule import Schedule

_WARM_UP_STEPS = 2


class StepTimes(TrainerCallback):
    """Marks what happens in a step; once the next one begins, the marks are seconds."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        """Time nothing yet."""
        self._schedule, self._clock = schedule, Clock(device)
        self._marks: dict[str, Any] = {}
        self._steps_timed = 0
        self._started, self._earlier_seconds = time.perf_counter(), 0.0
        self.last: dict[str, float] = {}
        """What a log line says of the last step that was timed."""

    @property
    def wall_seconds(self) -> float:
        """Time since training began, earlier runs of a resumed one counted in."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Start counting, after what earlier runs have spent."""
        spent = (entry.get("wall_seconds", 0.0) for entry in state.log_history)
        self._started, self._earlier_seconds = time.perf_counter(), max(spent, default=0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Close the step before and mark the start of the next."""
        now = self._clock.mark()
        if "begin" in self._marks and "updated" in self._marks:
            self._close(state.global_step, now)
        self._marks = {"begin": now, "passes": []}

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Time the forward and backward pass of a micro-batch."""
        start = self._clock.mark()
        yield
        self._marks.setdefault("passes", []).append((start, self._forwarded, self._clock.mark()))

    def forwarded(self) -> None:
        """Mark the end of a forward pass."""
        self._forwarded = self._clock.mark()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Mark the end of the optimizer's work."""
        self._marks["updated"] = self._clock.mark()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave out a step that a checkpoint follows."""
        self._marks = {}

    def _close(self, step: int, now: Any) -> None:  # noqa: ANN401 (an event or a number)
        """Turn a finished step's marks into seconds."""
        marks, seconds = self._marks, self._clock.seconds
        self._steps_timed += 1
        if self._steps_timed <= _WARM_UP_STEPS and self._schedule.steps > 2 * _WARM_UP_STEPS:
            return
        total = seconds(marks["begin"], now)
        tokens = self._schedule.tokens[step] - self._schedule.tokens[step - 1]
        self.last = {
            "forward_seconds": sum(seconds(start, end) for start, end, _ in marks["passes"]),
            "backward_seconds": sum(seconds(start, end) for _, start, end in marks["passes"]),
            "optimizer_seconds": seconds(marks["passes"][-1][2], marks["updated"]),
            "step_seconds": total,
            "step_tokens": tokens,
            "tokens_per_second": tokens / total,
        }
