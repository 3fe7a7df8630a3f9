"""Checkpoints to resume from: the trained parameters only, and a mark once they are whole.

What callbacks keep is stored with them, and a step after which a callback stops the run has none: a
run that is killed while it writes its result repeats its last steps and stops there again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from deepen.common.errors import DeepenError
from deepen.training.run_folder import mark_whole

WEIGHTS = "model.safetensors"
"""Name of the trained parameters in a checkpoint."""


class SavesTrained(Trainer):
    """An engine that leaves what never trained out of its checkpoints."""

    kept: Collection[str] = ()
    """Names of the parameters that they hold."""
    needed: Collection[str] = ()
    """Names that the one which the engine resumes from must hold: fewer where a phase begins."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ANN401
        """Save the trained parameters only: the others lie in the model's own folder."""
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        module = self.accelerator.unwrap_model(self.model)
        state = state_dict if state_dict is not None else module.state_dict()
        save_file({name: state[name].contiguous() for name in self.kept}, folder / WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
        """Save what a resumed run needs, and mark it once every process has written its part."""
        Trainer._save_checkpoint(self, model, trial)  # without the model card that TRL would add
        self.accelerator.wait_for_everyone()
        if self.state.is_world_process_zero:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            mark_whole(Path(str(self.args.output_dir)) / name)

    def _load_callback_state(self) -> None:
        """Hand stored states to the callbacks: transformers would make others, behind all."""
        kept: Any = self.state.stateful_callbacks or {}
        left = {k: [*data] if isinstance(data, list) else [data] for k, data in kept.items()}
        for callback in self.callback_handler.callbacks:
            stored = left.get(type(callback).__name__)
            if stored and isinstance(callback, ExportableState):
                for name, value in stored.pop(0)["attributes"].items():
                    setattr(callback, name, value)

    def _issue_warnings_after_load(self, load_result: Any) -> None:  # noqa: ANN401
        """Insist that only what had not trained is missing from a checkpoint."""
        if {*self.needed} & {*load_result.missing_keys} or load_result.unexpected_keys:
            raise DeepenError(
                f"The checkpoint in {self.args.output_dir!r} does not fit the model; "
                f"delete it to start again."
            )


class EndsPhase(TrainerCallback):
    """Saves what the next phase goes on from, and stops; its place is behind all callbacks."""

    def __init__(self, end: int) -> None:
        """Know the phase's last step."""
        self._end = end
        self.over = False
        """Whether the phase has come to its end, and no callback has ended the run there."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Ask for a checkpoint after the last step."""
        control.should_save |= state.global_step == self._end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Stop once it is written."""
        if state.global_step == self._end:
            self.over = not control.should_training_stop
            control.should_training_stop = True


class LogsWhenSaving(TrainerCallback):
    """Logs whenever a checkpoint is due, so that a resumed run averages over the same steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Ask for a log line where a checkpoint is asked for, and after the last step."""
        control.should_log |= control.should_save or control.should_training_stop

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave out the checkpoint of a step after which a callback stops the run."""
        stopped = control.should_training_stop and state.global_step < state.max_steps
        control.should_save = control.should_save and not stopped


class Agrees(TrainerCallback):
    """What one process's callbacks ask for all processes do, or they would wait for each other."""

    def __init__(self, accelerator: Any) -> None:  # noqa: ANN401 (no types there)
        """Ask nothing yet; its place is behind the callbacks that ask for something."""
        self._accelerator = accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Agree on what was asked for in a step."""
        self._agree(control)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Agree on what was asked for when a loss was seen."""
        self._agree(control)

    def _agree(self, control: Any) -> None:  # noqa: ANN401
        """Set every switch that any process has set."""
        switches = [switch.name for switch in fields(control)]
        asked = [float(getattr(control, switch)) for switch in switches]
        total = self._accelerator.reduce(torch.tensor(asked, device=self._accelerator.device))
        for switch, count in zip(switches, total.tolist(), strict=True):
            setattr(control, switch, count > 0)


def trained_names(module: Any) -> list[str]:  # noqa: ANN401 (no types there)
    """Return the names of the parameters that train."""
    return [name for name, p in module.named_parameters() if p.requires_grad]


class Averaged(Mapping[str, Tensor]):
    """A module's parameters, each the mean of what checkpoints and the end of the run hold."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        checkpoints: Sequence[Path],
        trained: Collection[str],
        start: Callable[[str], Tensor],
    ) -> None:
        """Read nothing yet.

        Args:
            state: The parameters at the end of the run, under their names in memory.
            checkpoints: Folders of earlier steps, which hold what had trained by then.
            trained: Names of what has trained.
            start: Loads what a parameter was before it trained.
        """
        self._state, self._files = state, [folder / WEIGHTS for folder in checkpoints]
        self._start = start
        # Tied parameters are held once, and have two names.
        self._held = {state[name].data_ptr(): name for name in trained if checkpoints}

    def __getitem__(self, name: str) -> Tensor:
        """Return a parameter; if it trains the mean, taken in float64."""
        end = self._state[name]
        held = self._held.get(end.data_ptr())
        if held is None:
            return end
        total = end.detach().cpu().double()
        for file in self._files:
            with safe_open(file, "pt") as opened:
                total += opened.get_tensor(held) if held in opened.keys() else self._start(held)  # noqa: SIM118
        return (total / (len(self._files) + 1)).to(end.dtype)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._state)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._state)
