"""What training costs by placement: the estimate of ``deepen plan`` beside measurement.

Usage::

    python benchmarks/training.py [--like few-million|tiny] [--checkpointing] [--rounds 9]
                                  [--json FILE]

A random Llama is trained in float32 on the CPU: forward, loss, backward, clipping, AdamW, nothing
else. The rows take one step each in turn, round after round; seconds are medians over the rounds,
and CPU seconds stand beside them because other processes disturb them less.
FLOPs are counted by torch's FlopCounterMode (with attention written out, since torch does not count
the CPU's fused one), kept bytes by saved-tensor hooks, and peak memory is what a process of its own
gains over two steps, from before the model is built. The estimate of memory is a bound from above:
it adds up weights, gradients, optimizer, activations and the loss, which in a step without
accumulation are not all there at once.
With ``--checkpointing`` blocks compute their activations anew; kept bytes are then those of the
forward pass and, beside them, of the one block that the backward pass is in.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from deepen.base.anatomy import FAMILIES
from deepen.base.checkpoint import ModuleSource
from deepen.base.model import Model, as_model
from deepen.planning.cost import placements
from deepen.records.cost import Estimate
from deepen.training.engine.checkpointing import checkpoint_blocks
from deepen.training.freeze import Trains, freeze

PEAK_STEPS = 2


@dataclass(frozen=True)
class Like:
    """A model to measure on, and a batch."""

    config: Mapping[str, Any]
    """LlamaConfig of the base."""
    new_layers: int
    """Number of new blocks."""
    sequences: int
    """Sequences in a step."""
    sequence_length: int
    """Tokens in a sequence."""


LIKE = {
    "tiny": Like(
        {
            "num_hidden_layers": 4,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 256,
        },
        new_layers=2,
        sequences=2,
        sequence_length=64,
    ),
    "few-million": Like(
        {
            "num_hidden_layers": 8,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
        },
        new_layers=4,
        sequences=4,
        sequence_length=128,
    ),
}


class Run:
    """One row: a model with the freezing of an estimate, and its optimizer."""

    def __init__(self, like: Like, row: Estimate) -> None:
        """Build the grown model with random weights."""
        torch.manual_seed(0)
        config = LlamaConfig(**like.config | {"num_hidden_layers": row.depth})
        self.model: Any = LlamaForCausalLM._from_config(config, dtype=torch.float32).train()
        everything = row.trains == "everything"
        trains = Trains(everything, tuple(row.trained_blocks), frozenset())
        freeze(self.model, trains, FAMILIES["llama"])
        self.checkpointing, self.highest = row.activation_checkpointing, row.trained_blocks[-1]
        if self.checkpointing:
            checkpoint_blocks(self.model.model.layers, min(row.trained_blocks))
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        shape = (like.sequences, like.sequence_length)
        self.tokens = torch.randint(config.vocab_size, shape)

    def loss(self) -> Tensor:
        """Run the forward pass."""
        return self.model(self.tokens, labels=self.tokens, use_cache=False).loss

    def step(self) -> tuple[float, float]:
        """Take one training step; return its wall and CPU seconds."""
        started = time.perf_counter(), time.process_time()
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started[0], time.process_time() - started[1]

    def flops(self) -> int:
        """Count the FLOPs of a step."""
        fused = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            self.loss().backward()
        self.model.set_attn_implementation(fused)
        self.optimizer.zero_grad()
        return int(counter.get_total_flops())

    def kept_bytes(self) -> int:
        """Measure what a step keeps for the backward pass, weights left aside."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage().data_ptr()
            if storage not in weights:
                kept[storage] = tensor
            return tensor

        block, given = self.model.model.layers[self.highest], []
        hook = block.register_forward_pre_hook(
            lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
        )
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
            if self.checkpointing:  # one trained block by itself, as the backward pass has it
                args, kwargs = given[0]
                block.gradient_checkpointing = False
                block(*args, **kwargs)
                block.gradient_checkpointing = True
        hook.remove()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def base_of(like: Like) -> Model:
    """Return the base that the rows grow, with random weights."""
    model = LlamaForCausalLM._from_config(LlamaConfig(**like.config), dtype=torch.float32)
    return as_model(ModuleSource(model, model.config.to_dict()))


def memory(field: str) -> int:
    """Read a field of this process's memory, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(name: str, threads: int, row: Estimate) -> int:
    """Measure, in a fresh process, what a few steps add to its memory."""
    torch.set_num_threads(threads)
    tiny = LIKE["tiny"]  # load what the libraries load late
    Run(tiny, placements(base_of(tiny), 1, sequence_length=64)[0]).step()
    before = memory("VmRSS")
    run = Run(LIKE[name], row)
    for _ in range(PEAK_STEPS):
        run.step()
    return memory("VmHWM") - before


def peaks(name: str, rows: list[Estimate]) -> list[int]:
    """Measure each row's peak memory in a process of its own, one after another."""
    # Hand freed tensors back at once, or the peak is that of glibc's leftovers.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        return list(pool.map(partial(peak_bytes, name, torch.get_num_threads()), rows))


def measure(name: str, rounds: int, checkpointing: bool) -> list[dict[str, Any]]:
    """Measure every row beside its estimate."""
    like = LIKE[name]
    rows = placements(
        base_of(like),
        like.new_layers,
        sequence_length=like.sequence_length,
        sequences=like.sequences,
        activation_checkpointing=checkpointing,
    )
    peak = peaks(name, rows)
    runs = [Run(like, row) for row in rows]
    for run in runs:  # the optimizers' states are made in the first step
        run.step()
    seconds: list[list[tuple[float, float]]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, times in zip(runs, seconds, strict=True):
            times.append(run.step())
    return [
        {
            "estimate": row.model_dump(mode="json"),
            "wall_seconds": [wall for wall, _ in times],
            "cpu_seconds": [cpu for _, cpu in times],
            "flops": run.flops(),
            "activation_bytes": run.kept_bytes(),
            "peak_bytes": top,
        }
        for row, run, times, top in zip(rows, runs, seconds, peak, strict=True)
    ]


def times(measured: list[dict[str, Any]]) -> Table:
    """Show time and FLOPs; ratios are to full training."""
    columns = ("trained", "blocks / 3N", "GFLOP", "counted", "estimated time", "CPU time", "time")
    shown = Table(*columns, "seconds", "CPU seconds", box=box.MARKDOWN)
    full = measured[0]
    for row in measured:
        found = row["estimate"]
        tokens = found["sequences"] * found["sequence_length"]
        flops = found["flops_per_token"] + found["recomputation_flops_per_token"]
        wall, cpu = (median(row[key]) for key in ("wall_seconds", "cpu_seconds"))
        shown.add_row(
            found["label"],
            f"{found['relative_blocks']:.3f}",
            f"{flops * tokens / 1e9:.3f}",
            f"{row['flops'] / 1e9:.3f}",
            f"{found['relative_step_time']:.3f}",
            f"{cpu / median(full['cpu_seconds']):.3f}",
            f"{wall / median(full['wall_seconds']):.3f}",
            f"{wall:.3f}",
            f"{cpu:.3f}",
        )
    return shown


def memories(measured: list[dict[str, Any]]) -> Table:
    """Show memory in MB; ratios are to full training."""
    columns = ("trained", "kept", "measured", "weights", "gradients", "AdamW", "loss", "all")
    shown = Table(*columns, "peak", "ratio of all", "of peaks", box=box.MARKDOWN)
    for row in measured:
        found = row["estimate"]
        kinds = ("weight", "gradient", "optimizer", "loss", "total")
        shown.add_row(
            found["label"],
            f"{found['activation_bytes'] / 1e6:.3f}",
            f"{row['activation_bytes'] / 1e6:.3f}",
            *(f"{found[kind + '_bytes'] / 1e6:.1f}" for kind in kinds),
            f"{row['peak_bytes'] / 1e6:.1f}",
            f"{found['relative_bytes']:.3f}",
            f"{row['peak_bytes'] / measured[0]['peak_bytes']:.3f}",
        )
    return shown


def main() -> None:
    """Read the command line, measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--like", choices=LIKE, default="few-million", help="model and batch")
    parser.add_argument(
        "--checkpointing", action="store_true", help="compute activations anew in the backward pass"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for all single measurements")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    measured = measure(given.like, given.rounds, given.checkpointing)
    packages = ("deepen", "torch", "transformers")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    parameters = measured[0]["estimate"]["parameters"] / 1e6
    how = f"{given.like}, checkpointing" if given.checkpointing else given.like
    print(
        f"{how}: {measured[0]['estimate']['depth']} blocks, {parameters:.1f} M parameters; "
        f"medians of {given.rounds}; {torch.get_num_threads()} threads, load {load:.1f} at the "
        f"start; {versions}"
    )
    console = Console(width=160)
    console.print(times(measured), memories(measured))
    if given.json:
        report = {"like": given.like, "load": load, "versions": versions, "rows": measured}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
