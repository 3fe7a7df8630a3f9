"""transformers' Trainer and TRL's SFTTrainer, with what they do not do by themselves.

One set of overrides serves both: the order of the data, times and tokens in every log line,
checkpoints that hold the trained parameters only, and a stop at the first loss that is no number.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from deepen.common.errors import DeepenError
from deepen.common.progress import Progress
from deepen.training.data.order import Order
from deepen.training.engine.measure import Clock
from deepen.training.engine.rates import Rates
from deepen.training.engine.schedule import Schedule

if TYPE_CHECKING:
    # For mypy, the overrides are those of Trainer; SFTTrainer's are reached by the MRO.
    _Engine = Trainer
else:
    _Engine = object

COMPLETE = "complete"
"""Name of the file that marks a checkpoint as whole."""
WEIGHTS = "model.safetensors"
"""Name of the trained parameters in a checkpoint."""
_WARM_UP_STEPS = 2


class Overrides(_Engine):
    """What both engines share; mixed in before the engine's own class."""

    def prepare(
        self, schedule: Schedule, rates: Rates | None, stage: str, progress: Progress
    ) -> None:
        """Set what the constructors do not take; call it before ``train``."""
        self._schedule, self._rates = schedule, rates
        self._stage, self._progress = stage, progress
        self._clock = Clock(self.args.device)
        self._losses: list[Tensor] = []
        self._marks: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        self._steps_timed = 0
        self._earlier_seconds = 0.0
        self._started = time.perf_counter()
        self.add_callback(_Steps(self))

    def _get_train_sampler(self, train_dataset: object = None) -> Order:
        """Return the order that the seed fixes, whatever the model."""
        return self._schedule.order

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ANN401 (as the engines)
        """Give parameters that have a learning rate of their own a group of their own."""
        optimizer = super().create_optimizer(model)
        if self._rates:
            self._rates.regroup(optimizer, self.model if model is None else model)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Let output projections lead if the recipe says so."""
        scheduler = super().create_scheduler(*args, **kwargs)
        if self._rates:
            self._rates.hold(scheduler)
        return scheduler

    def begin(self, log_history: Sequence[Mapping[str, Any]]) -> None:
        """Start counting time, after what earlier runs have spent."""
        self._started = time.perf_counter()
        self._earlier_seconds = max((e.get("wall_seconds", 0.0) for e in log_history), default=0.0)

    def step_begins(self) -> None:
        """Close the step before and mark the start of the next."""
        now = self._clock.mark()
        if "begin" in self._marks and "updated" in self._marks:
            self._close_step(now)
        self._marks = {"begin": now, "passes": []}

    def step_updated(self) -> None:
        """Mark the end of the optimizer's work."""
        self._marks["updated"] = self._clock.mark()

    def step_saved(self) -> None:
        """Leave out of the times a step that a checkpoint follows."""
        self._marks = {}

    def _close_step(self, now: Any) -> None:  # noqa: ANN401 (an event or a number)
        """Turn a finished step's marks into seconds."""
        marks, seconds = self._marks, self._clock.seconds
        self._steps_timed += 1
        if self._steps_timed <= _WARM_UP_STEPS and self._schedule.steps > 2 * _WARM_UP_STEPS:
            return
        forward = sum(seconds(start, middle) for start, middle, _ in marks["passes"])
        backward = sum(seconds(middle, end) for _, middle, end in marks["passes"])
        step, total = self.state.global_step, seconds(marks["begin"], now)
        tokens = self._schedule.tokens[step] - self._schedule.tokens[step - 1]
        self._last = {
            "forward_seconds": forward,
            "backward_seconds": backward,
            "optimizer_seconds": seconds(marks["passes"][-1][2], marks["updated"]),
            "step_seconds": total,
            "step_tokens": tokens,
            "tokens_per_second": tokens / total,
        }

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the engines)
        """Time the forward pass and keep its loss."""
        loss = super().compute_loss(*args, **kwargs)
        self._forwarded = self._clock.mark()
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Time the forward and backward pass of a micro-batch."""
        start = self._clock.mark()
        loss: Tensor = super().training_step(*args, **kwargs)
        self._marks.setdefault("passes", []).append((start, self._forwarded, self._clock.mark()))
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Stop before the update if the loss or a gradient is no number.

        Raises:
            DeepenError: It is not.
        """
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[no-untyped-call]
        losses = torch.stack([loss.float().mean() for loss in self._losses])
        self._losses = []
        bad = [str(float(loss)) for loss in losses if not math.isfinite(loss)]
        if bad or (norm is not None and not math.isfinite(float(norm))):
            step = self.state.global_step + 1
            batch = self._schedule.batch(step)
            shown = ", ".join(map(str, batch[:8])) + (" and more" if len(batch) > 8 else "")
            what = f"The loss is {bad[0]}" if bad else f"The gradient's length is {float(norm)}"
            raise DeepenError(
                f"{what} at step {step} (batch {step}: sequences {shown} of the data); the model "
                f"was left as it was after step {step - 1}, {self._kept()}; train again with a "
                f"lower training.learning_rate, into another output."
            )
        return norm

    def _kept(self) -> str:
        """Say which checkpoint is left."""
        last = last_checkpoint(Path(str(self.args.output_dir)))
        return f"the last checkpoint is {last}" if last else "and no checkpoint had been written"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens and times to what is logged, and move the progress bar."""
        step = self.state.global_step
        if "loss" in logs:
            logs["tokens"] = self._schedule.tokens[step]
            logs["wall_seconds"] = self._earlier_seconds + time.perf_counter() - self._started
            logs |= self._last
            rate = self._last.get("tokens_per_second")
            speed = f", {rate:,.0f} tokens/s" if rate else ""
            self._progress(
                f"{self._stage}: loss {logs['loss']:.3f}{speed}", step / self._schedule.steps
            )
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ANN401
        """Save the trained parameters only: the frozen ones lie in the model's own folder."""
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        state = state_dict if state_dict is not None else model.state_dict()
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        save_file({name: state[name].contiguous() for name in trained}, folder / WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
        """Save what a resumed run needs, without the model card that TRL would add."""
        Trainer._save_checkpoint(self, model, trial)

    def _issue_warnings_after_load(self, load_result: Any) -> None:  # noqa: ANN401
        """Insist that only frozen parameters are missing from a checkpoint."""
        model = self.accelerator.unwrap_model(self.model)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        if trained & set(load_result.missing_keys) or load_result.unexpected_keys:
            raise DeepenError(
                f"The checkpoint in {self.args.output_dir!r} does not fit the model; "
                f"delete it to start again."
            )


class _Steps(TrainerCallback):
    """Passes the events of a step on, and marks whole checkpoints."""

    def __init__(self, engine: Overrides) -> None:
        """Serve one engine."""
        self._engine = engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Start the clock."""
        self._engine.begin(state.log_history)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Time the step."""
        self._engine.step_begins()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Time the update."""
        self._engine.step_updated()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Log whenever a checkpoint is due, so that a resumed run averages over the same steps."""
        if control.should_save:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Mark the checkpoint as whole, once every process has written its part."""
        self._engine.step_saved()
        self._engine.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            (folder / COMPLETE).touch()


class CptTrainer(Overrides, Trainer):
    """transformers' Trainer for packed blocks."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest whole checkpoint in a folder."""
    whole = [mark.parent for mark in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack equal blocks into a batch."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
