"""What lies in a run's folder, and what may be done with it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from deepen.common.errors import DeepenError
from deepen.common.files import write_whole
from deepen.common.settings import Tree, differences, read_yaml, write_yaml
from deepen.records.training import TrainRecord
from deepen.training.recipe import Recipe

_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: a float32 weight and AdamW's two moments."""
_CHECKPOINTS = 3
"""On the disk at once: two whole ones and the next."""
_SLACK_BYTES = 2**25
_ELSEWHERE = ("output", "data.cache")
"""Keys of a recipe that say where things lie: a run may be moved."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run."""

    path: Path
    """Where it lies."""

    @classmethod
    def of(cls, recipe: Recipe) -> "RunFolder":
        """Return the folder that a recipe names."""
        return cls(Path(recipe.output))

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def record(self) -> Path:
        """What was done; written last."""
        return self.path / "record.json"

    @property
    def model(self) -> Path:
        """The trained checkpoint."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """What a killed run resumes from; deleted at the end."""
        return self.path / "checkpoints"

    @property
    def data(self) -> Path:
        """Tokenised data, unless the recipe keeps them elsewhere."""
        return self.path / "data"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files."""
        return self.path / "tensorboard"

    def finished(self, recipe: Recipe) -> TrainRecord | None:
        """Return the record of a finished run; ``None`` if there is something left to do.

        Raises:
            DeepenError: The folder belongs to a run of another recipe, or to something else.
        """
        if not self.recipe.is_file():
            if self.model.exists() or (self.path.exists() and not self.path.is_dir()):
                raise DeepenError(
                    f"{str(self.path)!r} (output) exists and is no run's folder; choose another."
                )
            return None
        changes = differences(read_yaml(self.recipe), _portable(recipe), _ELSEWHERE)
        if different := [f"{key} was {old!r}, is {new!r}" for key, old, new in changes]:
            raise DeepenError(
                f"{str(self.path)!r} (output) holds a run of another recipe "
                f"({', '.join(different)}); choose another output, or start it again without "
                f"resuming."
            )
        if not self.record.is_file():
            return None
        return TrainRecord.model_validate_json(self.record.read_text(encoding="utf-8"))

    def clear(self) -> None:
        """Delete what an earlier run left, tokenised data excepted."""
        for file in (self.record, self.recipe):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.model, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)

    def begin(self, recipe: Recipe) -> None:
        """Write the resolved recipe and drop checkpoints that a kill left unfinished."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_yaml(self.recipe, _portable(recipe))
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            if not (checkpoint / "complete").is_file():
                shutil.rmtree(checkpoint)

    def end(self, record: TrainRecord, *, keep_checkpoints: bool) -> None:
        """Write the record; from now on the run is finished, and what it resumed from can go."""
        write_whole(self.record, record.model_dump_json(indent=2) + "\n")
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            shutil.rmtree(self.data, ignore_errors=True)

    def check_disk(self, trained_parameters: int, weight_bytes: int) -> None:
        """Refuse to start what the disk cannot hold.

        Raises:
            DeepenError: It is too small.
        """
        needed = _CHECKPOINTS * _BYTES_PER_PARAMETER * trained_parameters + weight_bytes
        there = sum(f.stat().st_size for f in self.checkpoints.rglob("*") if f.is_file())
        free = _free(self.path) + there
        if needed + _SLACK_BYTES > free:
            raise DeepenError(
                f"The disk of {str(self.path)!r} (output) has {free / 1e9:.2f} GB free, and "
                f"checkpoints and the trained model need {needed / 1e9:.2f} GB; free some space or "
                f"choose another output."
            )

    @contextmanager
    def full_disk_explained(self) -> Iterator[None]:
        """Turn the errors of a full disk into a sentence.

        Raises:
            DeepenError: The disk is full.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            # torch and safetensors lose the error's number on the way.
            if not full and _free(self.path) > _SLACK_BYTES:
                raise
            raise DeepenError(
                f"The disk of {str(self.path)!r} (output) is full; the last whole checkpoint is "
                f"kept: free some space and run the same command again."
            ) from error


def _free(path: Path) -> int:
    """Return the free bytes of the disk that holds, or will hold, a folder."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(os.fspath(path)).free


def _portable(recipe: Recipe) -> Tree:
    """Write a recipe as YAML has it."""
    return recipe.model_dump(mode="json")
