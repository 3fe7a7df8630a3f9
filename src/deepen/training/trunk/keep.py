"""Keep a trunk's states for a run: prove that they are enough, compute them, start from them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.common.progress import Progress
from deepen.records.training import TrunkRecord
from deepen.training.engine.schedule import Schedule
from deepen.training.engine.trainers import collate
from deepen.training.processes import processes, rank
from deepen.training.recipe import Recipe
from deepen.training.trunk.bypass import Bypass, NotKeptError
from deepen.training.trunk.data import STATE, WithStates, parts
from deepen.training.trunk.fill import fill
from deepen.training.trunk.key import states_key, trunk_key
from deepen.training.trunk.proof import prove
from deepen.training.trunk.states import States
from deepen.training.trunk.wanted import check_room


class _DiskError(NotKeptError):
    """The file of the states cannot be written or read."""


@dataclass(frozen=True)
class Trunk:
    """What a run starts from instead of running its trunk."""

    bypass: Bypass
    """Takes the states; the trunk's blocks are no longer in memory."""
    data: WithStates
    """The run's sequences with their states."""
    record: TrunkRecord
    """What was kept."""


@dataclass(frozen=True)
class Keeper:
    """A run whose trunk is to be kept."""

    recipe: Recipe
    """The resolved recipe."""
    model: Model
    """The checkpoint."""
    below: int
    """Number of blocks in the trunk."""
    data: Any
    """Packed sequences, or several sources of them."""
    schedule: Schedule
    """Which of them the run draws."""
    folder: Path
    """Where states are kept."""

    def keep(self, engine: Any, progress: Progress, tell: Callable[[str], None]) -> Trunk | None:  # noqa: ANN401
        """Compute the states and pass the trunk's blocks by; ``None`` if it cannot be done.

        Args:
            engine: The engine with the whole module on its device, before training.
            progress: Called with the finished share.
            tell: Called with why it cannot be done.

        Raises:
            DeepenError: It cannot be done, and the recipe insists on it.
        """
        started, blocks = time.perf_counter(), engine.model.get_submodule(self.model.blocks_path)
        bypass = Bypass(engine.model, blocks, self.below)
        data, computed, reason, fatal = None, 0, "another process cannot do it", False
        try:
            with _as_in_training(engine):
                data, computed = self._fill(engine, bypass, progress)
        except NotKeptError as error:
            # A disk that fills up is no fault of the recipe, and ends no run.
            insists = self.recipe.training.trunk_cache is True
            reason, fatal = str(error), insists and not isinstance(error, _DiskError)
        # All processes must train the same module: none goes without by itself.
        mine = torch.tensor([data is None, fatal, computed], device=engine.args.device)
        failed, refused, computed = engine.accelerator.reduce(mine).tolist()
        if refused:
            raise DeepenError(
                f"training.trunk_cache cannot be true for {self.model.source.name}: {reason}; "
                f"leave it out, or set it to auto."
            )
        if failed or data is None:
            tell(f"The output of the blocks below block {self.below} is not kept: {reason}.")
            return None
        bypass.switch_on()
        bypass.free()
        sequences = len(self.schedule.distinct)
        record = TrunkRecord(
            blocks=self.below,
            sequences=sequences,
            computed=computed,
            stored_bytes=sequences * data.state_bytes,
            seconds=time.perf_counter() - started,
        )
        return Trunk(bypass, data, record)

    def _fill(self, engine: Any, bypass: Bypass, progress: Progress) -> tuple[WithStates, int]:  # noqa: ANN401
        """Prove that states are enough, and compute those that are not there.

        Returns:
            The sequences with their states, and how many of these were computed.

        Raises:
            NotKeptError: They are not enough, or the disk cannot hold them.
        """
        device = engine.args.device

        def batch_of(indices: Sequence[int]) -> Mapping[str, Tensor]:
            rows = collate([self.data[index] for index in indices])
            return {name: rows[name].to(device) for name in rows}

        batches = _own_batches(self.schedule, engine.args.per_device_train_batch_size)
        first = batch_of(batches[0])
        state = bypass.compute(first)
        prove(bypass, first, state)
        trunk = trunk_key(self.model, self.below, state.dtype, device)
        try:
            data = WithStates(
                self.data,
                [
                    States(
                        self.folder / f"trunk-{states_key(trunk, source)}.states",
                        len(source),
                        (state.shape[1], state.shape[2]),
                        state.dtype,
                    )
                    for source in parts(self.data)
                ],
            )
            _compare(data, batches[0], state)
            missing = len(data.missing(self.schedule.distinct))
            check_room(self.recipe, self.folder, missing * data.state_bytes)
            try:
                computed = fill(data, batches, lambda b: bypass.compute(batch_of(b)), progress)
            except OSError:
                data.delete()  # or the run would have no room for its own checkpoints
                raise
        except OSError as error:
            raise _DiskError(f"its file cannot be written ({error.strerror or error})") from error
        return data, computed


@contextmanager
def _as_in_training(engine: Any) -> Iterator[None]:  # noqa: ANN401
    """Compute as the engine will, and leave random states as they are."""
    device = engine.args.device
    engine.model.train()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=engine.args.bf16),
    ):
        yield


def _own_batches(schedule: Schedule, size: int) -> list[list[int]]:
    """List the batches that this process draws: accelerate deals them out one by one."""
    drawn = schedule.order.indices().reshape(-1, size).tolist()
    return list(drawn[rank() :: processes()])


def _compare(data: WithStates, batch: Sequence[int], state: Tensor) -> None:
    """Insist that states which an earlier run kept are those that this one computes.

    Raises:
        NotKeptError: One is not.
    """
    gone = {*data.missing(batch)}
    for index, row in zip(batch, state.cpu(), strict=True):
        if index not in gone and not torch.equal(data[index][STATE], row):
            raise NotKeptError("what an earlier run kept was computed with other rounding")
