"""What lies in a run's folder, and what may be done with it."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from deepen.common.errors import DeepenError
from deepen.common.files import digest_of, make_folders, sync_folder, sync_tree, write_whole
from deepen.common.progress import Tell
from deepen.common.settings import Tree, differences, read_yaml, write_yaml
from deepen.records.record import read_record
from deepen.records.training import TrainRecord
from deepen.training.recipe import Recipe

_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: a float32 weight and AdamW's two moments."""
_SLACK_BYTES = 2**25
_MARK, _OLD_MARK = "complete.json", "complete"
"""Files that mark a checkpoint as whole; the old one, of earlier versions, holds nothing."""
_NEEDED = ("model.safetensors", "scheduler.pt", "trainer_state.json")
"""What every checkpoint has, whatever the launcher."""
_FILES = TypeAdapter(dict[str, tuple[int, str]])
"""A mark: name of a file → its bytes, and their SHA-256."""
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
        if not self._is_run():
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
        if not self.model.is_dir():
            raise DeepenError(
                f"{str(self.record)!r} tells of a model that is no longer there; start the run "
                f"again without resuming."
            )
        return read_record(TrainRecord, self.record, "start the run again without resuming")

    def clear(self) -> None:
        """Delete what an earlier run left, tokenised data excepted.

        Raises:
            DeepenError: The folder belongs to something else.
        """
        if not self._is_run():
            return
        self.record.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.model, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        self.recipe.unlink()  # last: it says that the rest is a run's

    def _is_run(self) -> bool:
        """Whether a run has begun here.

        Raises:
            DeepenError: Something else lies here.
        """
        if self.recipe.is_file():
            return True
        # The engine makes its folders before the recipe is written.
        own = (self.model, self.checkpoints, self.tensorboard)
        taken = any(place.is_file() or any(place.glob("*")) for place in own)
        if taken or self.record.exists() or (self.path.exists() and not self.path.is_dir()):
            raise DeepenError(
                f"{str(self.path)!r} (output) exists and is no run's folder; choose another."
            )
        return False

    def begin(self, recipe: Recipe) -> None:
        """Write the resolved recipe."""
        make_folders(self.path)
        write_yaml(self.recipe, _portable(recipe))

    def drop_broken(self, tell: Tell) -> None:
        """Delete checkpoints that a kill left unfinished, and damaged ones behind a whole one.

        Args:
            tell: Called with what is damaged.

        Raises:
            DeepenError: Some are damaged and none is whole; nothing is deleted then.
        """
        damaged: list[tuple[Path, str]] = []
        for checkpoint in reversed(_marked(self.checkpoints)):
            if (reason := damage(checkpoint)) is None:
                break
            damaged.append((checkpoint, reason))
        else:
            if damaged:
                told = "; ".join(f"{checkpoint.name}: {reason}" for checkpoint, reason in damaged)
                raise DeepenError(
                    f"No checkpoint in {str(self.checkpoints)!r} is whole ({told}); bring one back "
                    f"from a copy, or start the run again without resuming."
                )
        for checkpoint, reason in damaged:
            tell(f"Passing over {checkpoint.name}, which is damaged: {reason}.")
            shutil.rmtree(checkpoint)
        whole = _marked(self.checkpoints)
        if whole and not (whole[-1] / _MARK).is_file():
            tell(
                f"Taking {whole[-1].name} as it is: it is of an earlier version, which wrote no "
                f"hashes to hold its files to."
            )
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            if checkpoint not in whole:
                shutil.rmtree(checkpoint)

    def end(self, record: TrainRecord, *, keep_checkpoints: bool) -> None:
        """Write the record; from now on the run is finished, and what it resumed from can go."""
        write_whole(self.record, record.model_dump_json(indent=2) + "\n")
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            shutil.rmtree(self.data, ignore_errors=True)

    @contextmanager
    def kept_told(self) -> Iterator[None]:
        """Note on whatever ends a run early, bad input apart, what is kept of it."""
        try:
            yield
        except DeepenError:
            raise
        except BaseException as error:
            last = last_checkpoint(self.checkpoints)
            where = (
                f"goes on after step {step_of(last):,}" if last else "starts from the first step"
            )
            error.add_note(f"the same command {where}")
            raise

    def to_average(self, step: int, count: int, between: int) -> list[Path]:
        """Return the last so many checkpoints before a step, the earliest first.

        Args:
            step: The step.
            count: How many.
            between: Steps between checkpoints; others, at the ends of phases, are passed over.

        Raises:
            DeepenError: One of them is damaged.
        """
        steps = {step_of(kept): kept for kept in _marked(self.checkpoints)}
        earlier = [kept for at, kept in steps.items() if at < step and at % between == 0]
        chosen = earlier[max(0, len(earlier) - count) :]
        for checkpoint in chosen:
            if (reason := damage(checkpoint)) is not None:
                raise DeepenError(
                    f"{checkpoint.name}, which is to be averaged, is damaged: {reason}; start the "
                    f"run again without resuming."
                )
        return chosen

    def check_disk(self, trained_parameters: int, weight_bytes: int, checkpoints: int) -> None:
        """Refuse to start what the disk cannot hold.

        Args:
            trained_parameters: How many parameters train.
            weight_bytes: Size of the trained model's weights.
            checkpoints: How many are on the disk at once.

        Raises:
            DeepenError: It is too small.
        """
        needed = checkpoints * _BYTES_PER_PARAMETER * trained_parameters + weight_bytes
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


def mark_whole(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, once every byte of it is on the disk.

    The mark holds the size and hash of every file, for ``damage``.
    """
    sync_tree(checkpoint)
    files = {name: _size_and_hash(checkpoint / name) for name in _files(checkpoint)}
    write_whole(checkpoint / _MARK, json.dumps(files, indent=2) + "\n")
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        sync_folder(folder)


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint that is marked as whole; ``None`` if nothing is.

    Of one that an earlier version marked, without hashes, only what is missing or empty is seen.
    """
    mark, there = checkpoint / _MARK, _files(checkpoint)
    try:
        if not mark.is_file():
            gone = next((name for name in _NEEDED if name not in there), None)
            gone = gone or (None if any("optimizer" in name for name in there) else "optimizer.pt")
            if gone:
                return f"{gone} is missing"
            empty = (name for name in there if not (checkpoint / name).stat().st_size)
            return next((f"{name} is empty" for name in empty), None)
        for name, (size, digest) in _FILES.validate_json(mark.read_bytes()).items():
            if name not in there:
                return f"{name} is missing"
            if (now := (checkpoint / name).stat().st_size) != size:
                return f"{name} has {now:,} bytes and had {size:,}"
            if _size_and_hash(checkpoint / name)[1] != digest:
                return f"{name} holds other bytes than were written"
    except ValidationError:
        return f"{_MARK} cannot be read"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest checkpoint in a folder that is marked as whole."""
    return next(reversed(_marked(folder)), None)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint is of."""
    return int(checkpoint.name.rpartition("-")[2])


def _marked(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that are marked as whole, the earliest first."""
    marks = [mark for name in (_MARK, _OLD_MARK) for mark in folder.glob(f"checkpoint-*/{name}")]
    numbered = {
        int(number): mark.parent
        for mark in marks
        if (number := mark.parent.name.removeprefix("checkpoint-")).isdecimal()
    }
    return [numbered[number] for number in sorted(numbered)]


def _files(checkpoint: Path) -> list[str]:
    """List a checkpoint's files but its marks, by their path in it."""
    inside = (file for file in checkpoint.rglob("*") if file.is_file())
    names = (file.relative_to(checkpoint).as_posix() for file in inside)
    return sorted(name for name in names if name not in (_MARK, _OLD_MARK))


def _size_and_hash(file: Path) -> tuple[int, str]:
    """Return a file's size and the SHA-256 of its bytes."""
    return file.stat().st_size, digest_of(file)


def _free(path: Path) -> int:
    """Return the free bytes of the disk that holds, or will hold, a folder."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(os.fspath(path)).free


def _portable(recipe: Recipe) -> Tree:
    """Write a recipe as YAML has it."""
    return recipe.model_dump(mode="json")
