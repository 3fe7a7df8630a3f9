"""Checkpoints to resume from: the trained parameters only, and a mark once they are whole."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from deepen.common.errors import DeepenError

COMPLETE = "complete"
"""Name of the file that marks a checkpoint as whole."""
WEIGHTS = "model.safetensors"
"""Name of the trained parameters in a checkpoint."""


class SavesTrained(Trainer):
    """An engine that leaves what is frozen out of its checkpoints."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ANN401
        """Save the trained parameters only: the frozen ones lie in the model's own folder."""
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        module = self.accelerator.unwrap_model(self.model)
        state = state_dict if state_dict is not None else module.state_dict()
        save_file({name: state[name].contiguous() for name in _trained(module)}, folder / WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
        """Save what a resumed run needs, and mark it once every process has written its part."""
        Trainer._save_checkpoint(self, model, trial)  # without the model card that TRL would add
        self.accelerator.wait_for_everyone()
        if self.state.is_world_process_zero:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (Path(str(self.args.output_dir)) / name / COMPLETE).touch()

    def _issue_warnings_after_load(self, load_result: Any) -> None:  # noqa: ANN401
        """Insist that only frozen parameters are missing from a checkpoint."""
        trained = _trained(self.accelerator.unwrap_model(self.model))
        if trained & set(load_result.missing_keys) or load_result.unexpected_keys:
            raise DeepenError(
                f"The checkpoint in {self.args.output_dir!r} does not fit the model; "
                f"delete it to start again."
            )


class LogsWhenSaving(TrainerCallback):
    """Logs whenever a checkpoint is due, so that a resumed run averages over the same steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Ask for a log line where a checkpoint is asked for."""
        control.should_log = control.should_log or control.should_save


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest whole checkpoint in a folder."""
    whole = [mark.parent for mark in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _trained(module: Any) -> set[str]:  # noqa: ANN401 (no types there)
    """Return the names of the parameters that train."""
    return {name for name, p in module.named_parameters() if p.requires_grad}
