"""transformers' Trainer and TRL's SFTTrainer, with what they do not do by themselves.

One set of overrides serves both: the order of the data, learning rates of their own, times and
tokens in every log line (``timing``), a stop at the first loss that is no number (``finite``), and
checkpoints that hold the trained parameters only (``saving``).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.common.progress import Progress
from deepen.training.data.order import Order
from deepen.training.engine.finite import check_finite
from deepen.training.engine.rates import Rates
from deepen.training.engine.saving import EndsPhase, LogsWhenSaving, SavesTrained, trained_names
from deepen.training.engine.schedule import Schedule
from deepen.training.engine.timing import StepTimes
from deepen.training.trunk.bypass import Bypass
from deepen.training.trunk.data import STATE, WithStates


@dataclass(frozen=True)
class Part:
    """What an engine does of a run that has phases; names are of parameters in memory."""

    end: int
    """The step after which it stops."""
    kept: Collection[str]
    """What its checkpoints hold: whatever has trained by then."""
    kept_before: Collection[str]
    """What the checkpoint holds that the phase before has ended with."""


class Overrides(SavesTrained):
    """What both engines share; named before the engine's own class."""

    def prepare(
        self,
        schedule: Schedule,
        rates: Rates | None,
        stage: str,
        progress: Progress,
        part: Part | None,
    ) -> None:
        """Set what the constructors do not take; call it before ``train``."""
        self._schedule, self._rates = schedule, rates
        self._stage, self._progress = stage, progress
        trained, self.in_phases = trained_names(self.model), part is not None
        self.part = part or Part(schedule.steps, trained, trained)
        self.kept = self.needed = self.part.kept
        self._losses: list[Tensor] = []
        self._bypass: Bypass | None = None
        self._times = StepTimes(schedule, self.args.device)
        self.add_callback(self._times)
        self.phase = EndsPhase(self.part.end)
        if self.part.end < schedule.steps:
            self.add_callback(self.phase)
        self.add_callback(LogsWhenSaving())

    def start_above(self, bypass: Bypass, data: WithStates) -> None:
        """Hand in what the trunk computes instead of running it; call it before ``train``."""
        self._bypass, self.train_dataset = bypass, data

    def _get_train_sampler(self, train_dataset: object = None) -> Order:
        """Return the order that the seed fixes, whatever the model."""
        return self._schedule.order

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ANN401 (as the engines)
        """Give parameters that have a learning rate of their own a group of their own."""
        module = self.model if model is None else model
        with self._having_trained(module):
            optimizer = super().create_optimizer(model)
        if self._rates:
            self._rates.regroup(optimizer, module)
        return optimizer

    @contextmanager
    def _having_trained(self, module: Any) -> Iterator[None]:  # noqa: ANN401
        """Let what trained in earlier phases require gradients, as what an optimizer takes must."""
        if not self.in_phases:
            yield
            return
        before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.kept)
        yield
        for parameter, required in before:
            parameter.requires_grad_(required)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Begin a phase with the optimizer of the one before, and what starts to train."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.in_phases and checkpoint is not None:
            assert self._rates is not None
            self._rates.resume(self.optimizer, self.lr_scheduler)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Let output projections lead, or phases follow each other, if the recipe says so."""
        scheduler = super().create_scheduler(*args, **kwargs)
        if self._rates:
            self._rates.hold(scheduler)
        return scheduler

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the engines)
        """Time the forward pass, from the trunk's states up if they are kept."""
        if self._bypass:
            inputs = dict(inputs)
            self._bypass.give(inputs.pop(STATE))
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._times.forwarded()
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Time the passes of a micro-batch and keep its loss."""
        with self._times.micro_batch():
            loss: Tensor = super().training_step(*args, **kwargs)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Stop before the update if the loss or a gradient is no number.

        Raises:
            DeepenError: It is not.
        """
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[no-untyped-call]
        length, step = None if norm is None else float(norm), self.state.global_step + 1
        folder = Path(str(self.args.output_dir))
        check_finite(self._losses, length, step, self._schedule, folder)
        self._losses = []
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens and times to what is logged, and move the progress bar."""
        step, times = self.state.global_step, self._times.last
        if "loss" in logs:
            logs["tokens"] = self._schedule.tokens[step]
            logs["wall_seconds"] = self._times.wall_seconds
            logs |= times
            speed = f", {times['tokens_per_second']:,.0f} tokens/s" if times else ""
            self._progress(
                f"{self._stage}: loss {logs['loss']:.3f}{speed}", step / self._schedule.steps
            )
        super().log(logs, start_time)


class CptTrainer(Overrides):
    """transformers' Trainer for packed sequences."""


def collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack sequences of one length into a batch."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
