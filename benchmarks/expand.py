"""What growing costs: time and memory of every method, beside a file copy and the released script.

Usage::

    python benchmarks/expand.py [--like small|1b|tiny|8b] [--rounds 3] [--threads 1] [--json FILE]

A random bfloat16 checkpoint is written to a temporary folder and grown by half. Every measurement
is a process of its own, since peak resident memory never goes down within one. All jobs run once
per round, in turn, on the same files; the table shows medians over the rounds.

``copy`` and ``copy, synced`` copy a file of the grown model's size; the second one also waits until
the bytes are on disk, as growing does. ``floor`` is what growing by copies cannot go below: the
system copies such a file, every number of it is looked at for NaN and Inf, and it is on disk;
``digests`` are those that growing promises, of each tensor and file written and of the base's
files. ``released script`` does what the released OpT-DeUS code
does: two whole models in float32, POT's Sinkhorn tensor by tensor, ``save_pretrained`` (not
synced). Its time, and that of ``opt-deus published``, hangs on whether POT stops after some ten
iterations or runs all 10,000, which in float32 is luck. At 1b and 8b both are left out unless
``--only`` names them.

``÷ floor`` compares CPU seconds, the other ratio wall time. Time starts when the libraries have
been imported; ``libraries`` is the peak memory until then. Compute runs in one thread unless
``--threads`` says otherwise: with more threads than idle cores, small tensor operations wait for
each other and take many times as long.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median

Prepare = Callable[[Path, int], Callable[[], object]]
"""Takes the work folder and the number of new blocks, imports, and returns what to measure."""


def copy(folder: Path, new_layers: int, *, synced: bool) -> Callable[[], object]:
    """Prepare to copy a file of the grown size."""

    def run() -> None:
        shutil.copyfile(folder / "filler", folder / "out")
        if synced:
            with (folder / "out").open("rb") as file:
                os.fsync(file.fileno())

    return run


def floor(folder: Path, new_layers: int) -> Callable[[], object]:
    """Prepare to copy a file of the grown size and to look at its numbers."""
    from deepen.base.weights.raw import Stored, copy_bytes
    from deepen.base.weights.values import magnitude_of

    import_module("numpy")
    stored = Stored(folder / "filler", 0, (folder / "filler").stat().st_size)

    def run() -> None:
        with (folder / "out").open("wb") as file:
            copy_bytes(stored, file.fileno(), 0)
            for piece in stored.pieces():
                magnitude_of(piece, "BF16")
            os.fsync(file.fileno())

    return run


def digests(folder: Path, new_layers: int) -> Callable[[], object]:
    """Prepare to hash what growing hashes."""
    from deepen.common.files import digest_of

    def run() -> None:
        (folder / "out").touch()
        for file in (
            folder / "filler",
            folder / "filler",
            *(folder / "base").glob("*.safetensors"),
        ):
            digest_of(file)

    return run


def grow(folder: Path, new_layers: int, *, method: str, **options: str) -> Callable[[], object]:
    """Prepare to grow the base by a method of deepen."""
    from transformers import CONFIG_MAPPING

    from deepen import methods
    from deepen.growth import grow as growth
    from deepen.records.growth import GrowRequest

    methods.get(method)
    _ = CONFIG_MAPPING["llama"]
    if options:
        import_module("ot")
    request = GrowRequest(method=method, new_layers=new_layers, options=options, device="cpu")
    return lambda: growth.grow(folder / "base", folder / "out", request)


def released(folder: Path, new_layers: int) -> Callable[[], object]:
    """Prepare to grow the base as the released OpT-DeUS code does."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    oracles = import_module("oracles")
    import_module("transformers").LlamaForCausalLM  # noqa: B018 (transformers imports on access)
    return lambda: oracles.released_opt_deus_model(folder / "base", folder / "out", new_layers)


JOBS: Mapping[str, Prepare] = {
    "copy": partial(copy, synced=False),
    "copy, synced": partial(copy, synced=True),
    "floor": floor,
    "digests": digests,
    "released script": released,
    **{
        f"opt-deus {fidelity}": partial(grow, method="opt-deus", fidelity=fidelity)
        for fidelity in ("published", "normalised")
    },
    **{name: partial(grow, method=name) for name in ("opt-deus", "avg-deus", "solar")},
    **{name: partial(grow, method=name) for name in ("llama-pro", "lesa")},
}
SLOW = ("released script", "opt-deus published")


def measure(folder: Path, job: str, new_layers: int) -> dict[str, float]:
    """Run one job in this process and say what it took."""
    from deepen.common.system import peak_resident_bytes

    run = JOBS[job](folder, new_layers)
    libraries = peak_resident_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_resident_bytes(),
        "libraries_bytes": libraries,
    }


def set_up(folder: Path, like: str, new_layers: int | None) -> dict[str, float]:
    """Write the checkpoint and a file as large as the grown weights; say how large that is."""
    from deepen.growth.preview import plan
    from random_checkpoint import LIKE, write_random_checkpoint

    write_random_checkpoint(folder / "base", like)
    new_layers = new_layers or LIKE[like]["num_hidden_layers"] // 2
    size = plan(folder / "base", new_layers=new_layers).growth.weight_bytes
    noise = os.urandom(2**24)
    with (folder / "filler").open("wb") as file:
        for start in range(0, size, len(noise)):
            file.write(noise[: size - start])
    return {"new_layers": new_layers, "grown_bytes": size}


def in_child(*arguments: object) -> dict[str, float]:
    """Run this file in a process of its own and return what it prints last.

    A process inherits its parent's peak memory on some systems, so the parent never imports torch.
    """
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(
    folder: Path, jobs: Sequence[str], rounds: int, new_layers: float
) -> Iterator[tuple[str, dict[str, float]]]:
    """Measure every job once per round, in turn."""
    for number in range(rounds):
        for job in jobs:
            os.sync()  # what the job before left to be written is not this one's
            print(f"round {number + 1}: {job}", file=sys.stderr, flush=True)
            yield job, in_child("--in", folder, "--job", job, "--new-layers", new_layers)
            out = folder / "out"
            shutil.rmtree(out) if out.is_dir() else out.unlink()


def show(
    title: str, medians: Mapping[str, Mapping[str, float]], facts: Mapping[str, float]
) -> None:
    """Print the table, as Markdown."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = ("job", "wall s", "CPU s", "s / new block", "÷ floor", "÷ released script")
    table = Table(*columns, "peak MB", "libraries MB", "beyond MB", box=box.MARKDOWN)
    for job, run in medians.items():
        wall, peak, libraries = (
            run[key] for key in ("wall_seconds", "peak_bytes", "libraries_bytes")
        )
        ratios = [
            f"{run[key] / medians[other][key]:.3g}" if other in medians else ""
            for other, key in (("floor", "cpu_seconds"), ("released script", "wall_seconds"))
        ]
        times = [f"{s:.3g}" for s in (wall, run["cpu_seconds"], wall / facts["new_layers"])]
        sizes = [f"{size / 1e6:.0f}" for size in (peak, libraries, peak - libraries)]
        table.add_row(job, *times, *ratios, *sizes)
    print(title)
    Console(width=150).print(table)


def run_all(given: argparse.Namespace) -> None:
    """Set up, measure every job and show the medians."""
    jobs = given.only or [
        name for name in JOBS if given.like in ("tiny", "small") or name not in SLOW
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["OMP_NUM_THREADS"] = str(given.threads)  # inherited by every child
        more = ["--new-layers", given.new_layers] if given.new_layers else []
        facts = in_child("--in", folder, "--like", given.like, *more)
        runs = list(measured(folder, jobs, given.rounds, facts["new_layers"]))
    of_job = {job: [run for name, run in runs if name == job] for job in jobs}
    medians = {
        job: {key: median(run[key] for run in of_job[job]) for key in of_job[job][0]}
        for job in jobs
    }
    packages = ("deepen", "torch", "transformers", "safetensors", "POT", "numpy")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    size = f"{facts['grown_bytes'] / 1e6:.0f} MB, {facts['new_layers']} new blocks"
    show(
        f"{given.like} ({size}); medians of {given.rounds}; threads: {given.threads}; {versions}",
        medians,
        facts,
    )
    if given.json:
        report = {"like": given.like, **facts, "versions": versions, "runs": of_job}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line; be the parent, or with ``--in`` one of its children."""
    parser = argparse.ArgumentParser(description="Time and memory of growing.")
    parser.add_argument("--like", choices=("tiny", "small", "1b", "8b"), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="compute threads of each job")
    parser.add_argument("--only", choices=JOBS, nargs="+", help="jobs to run, instead of all")
    parser.add_argument("--new-layers", type=int, help="by default half of the base's")
    parser.add_argument("--json", type=Path, help="file for all single measurements")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measure(given.folder, given.job, given.new_layers)))
    elif given.folder:
        print(json.dumps(set_up(given.folder, given.like, given.new_layers)))
    else:
        run_all(given)


if __name__ == "__main__":
    main()
