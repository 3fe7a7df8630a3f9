"""What aligning two blocks costs: structured alignment beside `normalised` transport with POT.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/transport.py [--like small|1b|8b] [--part ffn] [--rounds 1]

Two blocks in the shape of a known model are made in float32: ``random`` has unrelated Gaussian
weights, in ``copy`` the upper block is the lower one scrambled by symmetries (neurons, scales,
signs, heads and bases inside them), plus 1 % noise. A job aligns the lower block to the upper and
moves its weights; making the blocks is not counted. Every measurement is a process of its own, and
jobs take turns; the table shows medians over the rounds, and ratios to the first job.

``normalised`` aligns query, key, value, output, gate and up row by row with a plan each, the cost
in units of its spread. POT's Sinkhorn underflows on that cost (exp(-C / 0.06) for C around 60), so
its rows' and columns' minima are subtracted first, which leaves the plan the same. Its threshold
lies at float32's noise, so ``--max-iterations`` decides when it stops; ``normalised, deepen``
stops at marginals within 1e-3.

``similarity`` is the mean cosine of matched neurons (gate, up and down together) before and after,
``heads`` that of query heads; ``matches`` are effective matches, and ``moved`` is how far the
aligned FFN's function is from A's own, relative, on 64 random inputs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from deepen.transport.heads import Attention
    from deepen.transport.neurons import Ffn

SHAPES: Mapping[str, Mapping[str, int]] = {
    "warm-up": {"hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16},
    "small": {"hidden": 512, "ffn": 1408, "heads": 8, "kv_heads": 4, "head_dim": 64},
    "1b": {"hidden": 2048, "ffn": 8192, "heads": 32, "kv_heads": 8, "head_dim": 64},
    "8b": {"hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128},
}
STD, NOISE, REGULARISATION = 0.02, 0.01, 0.06

Parts = tuple["Ffn", "Attention"]
"""What a block is made of."""
Part = TypeVar("Part", "Ffn", "Attention")


def random_parts(like: str, seed: int) -> Parts:
    """Make a block of Gaussian weights."""
    import torch

    from deepen.transport.heads import Attention, Rotary
    from deepen.transport.neurons import Ffn

    shape = SHAPES[like]
    hidden, heads, groups = shape["hidden"], shape["heads"], shape["kv_heads"]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return STD * torch.randn(*size, generator=generator)

    ffn = Ffn(*(normal(shape["ffn"], hidden) for _ in "gu"), normal(hidden, shape["ffn"]))
    rows, group_rows = heads * shape["head_dim"], groups * shape["head_dim"]
    weights = normal(rows, hidden), *(normal(group_rows, hidden) for _ in "kv")
    rotary = Rotary(shape["head_dim"])
    return ffn, Attention(*weights, normal(hidden, rows), heads, groups, rotary)


def scrambled(parts: Parts, seed: int) -> Parts:
    """Write the same block down in another way, and add a little noise."""
    from dataclasses import replace

    import torch

    from deepen.transport.gauge import plane_map
    from deepen.transport.heads import HeadMatch, apply_attention
    from deepen.transport.neurons import NeuronMatch, apply_ffn

    ffn, attention = parts
    generator = torch.Generator().manual_seed(seed)
    n, groups, per_group = len(ffn.up), attention.kv_heads, attention.heads // attention.kv_heads
    head_dim = len(attention.key) // groups
    none, ones = torch.zeros(n), torch.ones(n, dtype=torch.float64)
    signs = 2.0 * torch.randint(2, (n,), generator=generator) - 1
    scales = torch.randn(n, generator=generator).exp().double()
    order = torch.randperm(n, generator=generator)
    ffn = apply_ffn(NeuronMatch(order, signs, ones, scales, None, 0.0, none, none, none), ffn)
    chosen = torch.randperm(groups, generator=generator)
    heads = [k * per_group + torch.randperm(per_group, generator=generator) for k in chosen]
    angles = 6.3 * torch.rand(groups, head_dim // 2, generator=generator).double()
    keys = torch.stack(
        [plane_map(torch.polar(ones[: len(x)], x), head_dim, "half") for x in angles]
    )
    values = (
        torch.eye(head_dim, dtype=torch.float64)
        + 0.3
        * torch.randn(groups, head_dim, head_dim, generator=generator, dtype=torch.float64)
        / head_dim**0.5
    )
    moved = HeadMatch(chosen, torch.cat(heads), keys, values, none)
    attention = apply_attention(moved, attention)

    def noisy(part: Part) -> Part:
        tensors = {k: v for k, v in vars(part).items() if isinstance(v, torch.Tensor)}
        noise = {k: torch.randn(v.shape, generator=generator) for k, v in tensors.items()}
        return replace(part, **{k: v + NOISE * v.std() * noise[k] for k, v in tensors.items()})

    return noisy(ffn), noisy(attention)


def function_moved(ffn: "Ffn", aligned: "Ffn") -> float:
    """Return ‖f'(x) - f(x)‖ / ‖f(x)‖ over 64 random inputs."""
    import torch
    from torch.nn.functional import silu

    x = torch.randn(64, ffn.up.shape[1], generator=torch.Generator().manual_seed(5))
    before, after = ((silu(x @ f.gate.T) * (x @ f.up.T)) @ f.down.T for f in (ffn, aligned))
    return float((after - before).norm() / before.norm())


def structured(a: Parts, b: Parts, part: str, reg: float | None, limit: int) -> dict[str, float]:
    """Match FFN and attention and move A's weights, each part timed (CPU)."""
    from deepen.transport import heads, neurons, quality

    start = time.process_time()
    match = neurons.match_ffn(a[0], b[0], reg=reg, max_iterations=limit)
    found = {"ffn_seconds": time.process_time() - start}
    start = time.process_time()
    aligned = neurons.apply_ffn(match, a[0])
    found["apply_seconds"] = time.process_time() - start
    if part == "all":
        start = time.process_time()
        chosen = heads.match_attention(a[1], b[1])
        found["attention_seconds"] = time.process_time() - start
        start = time.process_time()
        heads.apply_attention(chosen, a[1])
        found["apply_seconds"] += time.process_time() - start
        after = quality.head_quality(chosen)
        found |= {"heads_before": after.similarity_before, "heads": after.similarity_after}
    after = quality.neuron_quality(match)
    return found | {
        "before": after.similarity_before,
        "similarity": after.similarity_after,
        "matches": after.effective_matches,
        "moved": function_moved(a[0], aligned),
    }


def normalised(a: Parts, b: Parts, part: str, solver: str, limit: int) -> dict[str, float]:
    """Align row by row, as opt-deus does at `fidelity: normalised`."""
    from dataclasses import replace

    import torch

    from deepen.transport import cost, quality, sinkhorn

    iterations, sharpness = 0, 0.0

    def plan(rows_a: torch.Tensor, rows_b: torch.Tensor) -> torch.Tensor:
        nonlocal iterations, sharpness
        distances = cost.in_units_of_spread(cost.euclidean(rows_a, rows_b))
        if solver == "pot":
            distances -= distances.amin(1, keepdim=True)
            distances -= distances.amin(0, keepdim=True)
        solved = getattr(sinkhorn, solver)(distances, REGULARISATION, limit)
        iterations += solved.iterations
        sharpness = quality.effective_matches(solved.plan)
        return solved.plan.mul_(len(rows_b))

    found: dict[str, float] = {}
    ffn, stream = a[0], None
    if part == "all":
        start = time.process_time()
        for name in ("query", "key", "value", "output"):
            below, above = getattr(a[1], name), getattr(b[1], name)
            stream = plan(below, above)
            moved = stream.T @ below
        found["attention_seconds"] = time.process_time() - start
    start = time.process_time()
    for name in ("gate", "up"):
        below = getattr(ffn, name)
        pushed = below if stream is None else below @ stream
        moved = plan(pushed, getattr(b[0], name)).T @ pushed
        ffn = replace(ffn, **{name: moved})
    found["ffn_seconds"] = time.process_time() - start
    return found | {
        "iterations": iterations,
        "matches": sharpness,
        "moved": function_moved(a[0], ffn),
    }


JOBS: Mapping[str, Callable[..., dict[str, float]]] = {
    "structured": partial(structured, reg=None),
    "structured, entropic": partial(structured, reg=REGULARISATION),
    "normalised, deepen": partial(normalised, solver="stabilised"),
    "normalised, POT": partial(normalised, solver="pot"),
}


def reset_peak() -> int:
    """Let peak memory count from now on (Linux), and return what is resident."""
    import psutil

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(psutil.Process().memory_info().rss)


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Make the blocks and run one job in this process."""
    from importlib import import_module

    from deepen.common.system import peak_resident_bytes

    for name in ("scipy.optimize", "ot"):
        import_module(name)
    # Libraries load code when it is first used, which is not what aligning costs.
    JOBS[given.job](*(random_parts("warm-up", seed) for seed in (0, 1)), "all", limit=50)
    a = random_parts(given.like, 0)
    b = random_parts(given.like, 1) if given.weights == "random" else scrambled(a, 1)
    before = reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    found = JOBS[given.job](a, b, given.part, limit=given.max_iterations)
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_resident_bytes(),
        "start_bytes": before,
        **found,
    }


def in_child(given: argparse.Namespace, weights: str, job: str) -> dict[str, float]:
    """Run one job in a process of its own."""
    command = [sys.executable, __file__, "--like", given.like, "--part", given.part]
    command += ["--job", job, "--weights", weights]
    command += ["--max-iterations", str(given.max_iterations)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


COLUMNS: Mapping[str, tuple[str, float, str]] = {
    "wall s": ("wall_seconds", 1, ".3g"),
    "CPU s": ("cpu_seconds", 1, ".3g"),
    "FFN CPU s": ("ffn_seconds", 1, ".3g"),
    "attention CPU s": ("attention_seconds", 1, ".3g"),
    "moving CPU s": ("apply_seconds", 1, ".2g"),
    "beyond blocks MB": ("beyond_bytes", 1e-6, ".0f"),
    "before": ("before", 1, ".3f"),
    "similarity": ("similarity", 1, ".3f"),
    "heads before": ("heads_before", 1, ".3f"),
    "heads": ("heads", 1, ".3f"),
    "matches": ("matches", 1, ".3g"),
    "iterations": ("iterations", 1, ".0f"),
    "moved": ("moved", 1, ".1g"),
}


def show(title: str, runs: Mapping[tuple[str, str], list[dict[str, float]]]) -> None:
    """Print medians as a Markdown table, CPU time also as a ratio to the first job's."""
    print(title, end="\n\n")
    print("| weights | job | ÷ structured |", " | ".join(COLUMNS), "|")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for (weights, job), measured in runs.items():
        of_first = runs[weights, next(iter(runs))[1]]
        ratio = median(x["cpu_seconds"] for x in measured) / median(
            x["cpu_seconds"] for x in of_first
        )
        cells = []
        for key, unit, form in COLUMNS.values():
            values = [x[key] for x in measured if key in x]
            cells.append(format(median(values) * unit, form) if values else "–")
        print(f"| {weights} | {job} | {ratio:.2g} |", " | ".join(cells), "|")


def main() -> None:
    """Read the command line; be the parent, or with ``--job`` one of its children."""
    parser = argparse.ArgumentParser(description="Time and memory of aligning two blocks.")
    parser.add_argument("--like", choices=SHAPES, default="small")
    parser.add_argument("--part", choices=("all", "ffn"), default="all", help="ffn: no attention")
    parser.add_argument("--only", choices=JOBS, nargs="+", help="jobs to run, instead of all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--max-iterations", type=int, default=1000, help="of any Sinkhorn")
    parser.add_argument("--weights", choices=("random", "copy"), nargs="+")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    kinds = given.weights or ["random", "copy"]
    if given.job:
        given.weights = kinds[0]
        print(json.dumps(measure(given)))
        return
    runs: dict[tuple[str, str], list[dict[str, float]]] = {
        (kind, job): [] for kind in kinds for job in given.only or JOBS
    }
    for number in range(given.rounds):
        for (kind, job), measured in runs.items():
            print(f"round {number + 1}: {kind}, {job}", file=sys.stderr, flush=True)
            run = in_child(given, kind, job)
            run["beyond_bytes"] = run["peak_bytes"] - run["start_bytes"]
            measured.append(run)
    packages = ("deepen", "torch", "scipy", "POT")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    threads = os.environ.get("OMP_NUM_THREADS", "all cores")
    show(f"{given.like}; medians of {given.rounds}; threads: {threads}; {versions}", runs)


if __name__ == "__main__":
    main()
