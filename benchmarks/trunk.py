"""What a step costs above a trunk whose output is kept, beside one that runs every block.

Usage::

    python benchmarks/trunk.py CHECKPOINT [--sequences 4] [--sequence-length 256] [--rounds 9]

CHECKPOINT is a grown one; what trains is what ``deepen train`` would train by default, in float32
on the CPU: forward, loss, backward, clipping, AdamW. The module is one and the same, its trunk
passed by in every second step, and the state is read from its file each time, as in a run. The last
row is what the trunk costs once for each batch. Seconds are medians over the rounds; CPU seconds
stand beside them because other processes disturb them less.
"""

import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from deepen.base.model import open_model
from deepen.training.freeze import trainable
from deepen.training.load import load_module, lowest_trained
from deepen.training.recipe import TrainingConfig
from deepen.training.trunk.bypass import Bypass
from deepen.training.trunk.proof import prove
from deepen.training.trunk.states import States


class Steps:
    """Steps of both kinds on one module."""

    def __init__(self, checkpoint: Path, sequences: int, length: int, folder: Path) -> None:
        """Load the module and keep its trunk's output for one batch."""
        model, training = open_model(checkpoint), TrainingConfig(device="cpu", precision="float32")
        trains = trainable(model.source.config, model.depth, training, model.source.name)
        self.blocks, self.depth = lowest_trained(trains, model.depth), model.depth
        self.module: Any = load_module(model, trains, training).train()
        self.trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.module.config.vocab_size
        ids = torch.randint(vocabulary, (sequences, length), generator=generator)
        self.batch = {"input_ids": ids, "labels": ids}
        blocks = self.module.get_submodule(model.blocks_path)
        self.bypass = Bypass(self.module, blocks, self.blocks)
        state = self.bypass.compute(self.batch)
        prove(self.bypass, self.batch, state)
        shape = state.shape[1], state.shape[2]
        self.states = States(folder / "trunk.states", sequences, shape, state.dtype)
        for index, row in enumerate(state):
            self.states.write(index, row)

    def whole(self) -> None:
        """Take a step through every block."""
        self.module(**self.batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def above(self) -> None:
        """Take a step from the trunk's output up."""
        self.bypass.switch_on()
        rows = range(len(self.batch["input_ids"]))
        self.bypass.give(torch.stack([self.states.read(index) for index in rows]))
        self.whole()
        self.bypass.switch_off()

    def trunk(self) -> None:
        """Compute the trunk's output."""
        self.bypass.compute(self.batch)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def main() -> None:
    """Read the command line, measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        steps = Steps(given.checkpoint, given.sequences, given.sequence_length, Path(folder))
        rows = {
            "every block": steps.whole,
            f"above block {steps.blocks - 1}": steps.above,
            "the trunk, once": steps.trunk,
        }
        for work in rows.values():
            work()
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for _ in range(given.rounds):
            for name, work in rows.items():
                measured[name].append(timed(work))
    packages = ("deepen", "torch", "transformers")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(
        f"{given.checkpoint.name}: {steps.blocks} of {steps.depth} blocks in the trunk, "
        f"{given.sequences} × {given.sequence_length} tokens; medians of {given.rounds}; "
        f"{torch.get_num_threads()} threads, load {load:.1f} at the start; {versions}"
    )
    shown = Table("step", "seconds", "CPU seconds", "ratio of CPU seconds", box=box.MARKDOWN)
    full = median(cpu for _, cpu in measured["every block"])
    for name, times in measured.items():
        wall, cpu = (median(column) for column in zip(*times, strict=True))
        shown.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", f"{cpu / full:.2f}")
    Console(width=100).print(shown)


if __name__ == "__main__":
    main()
