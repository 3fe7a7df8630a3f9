"""Spoil inputs, use them through the command line, and hold what comes of it to the promise.

``make fuzz`` runs 5,500 of them and writes the table of docs/reliability.md; `make test` runs 275.
"""

import argparse
import contextlib
import faulthandler
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from deepen import cli
from deepen.common.system import peak_resident_bytes
from fuzz.kinds import KINDS, materials

MOST_SECONDS, MOST_BYTES = 10.0, 3 * 2**30
"""Processor time of one input; memory of the process that tries hundreds of them."""
DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- fuzz -->\n", "<!-- /fuzz -->\n"


@dataclass(frozen=True)
class Result:
    """What came of one input."""

    kind: str
    """What was spoilt."""
    number: int
    """Which one of its kind: its seed."""
    code: int
    """Exit code of the last command that ran."""
    seconds: float
    """Processor time."""
    wrong: str | None
    """What breaks the promise; ``None`` if nothing does."""


class TooLongError(BaseException):
    """An input took more than its time; no handler of errors must catch it."""


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what went to stderr."""
    code, err = 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            cli.main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code, err.getvalue()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """End what computes for too long, and the whole process if it waits for something."""

    def end(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    faulthandler.dump_traceback_later(30 * MOST_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def attempt(kind: str, number: int, made: Path) -> Result:
    """Spoil one input and use it."""
    random, code, wrong, started = Random(f"{kind} {number}"), 0, None, time.process_time()
    with tempfile.TemporaryDirectory(dir=made.parent) as place, contextlib.chdir(place):
        folder = Path(place)
        (folder / "materials").symlink_to(made)
        (folder / "corpus.txt").symlink_to(made / "corpus.txt")

        def copy(name: str) -> Path:
            return Path(shutil.copytree(made / name, folder / name))

        commands = KINDS[kind](random, folder, copy)
        before = sorted(folder.rglob("*"))
        try:
            with watched(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for command in commands:
                    code, err = run(command)
                    wrong = _broken_promise(command, code, err)
                    if code == 2 and not wrong and sorted(folder.rglob("*")) != before:
                        wrong = "left something behind"
                    if code or wrong:
                        break
                    before = sorted(folder.rglob("*"))
        except TooLongError:
            wrong = f"took more than {MOST_SECONDS:g} s"
        except BaseException as error:  # whatever escapes is what is looked for
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
    return Result(kind, number, code, time.process_time() - started, wrong)


def _broken_promise(command: Sequence[str], code: int, err: str) -> str | None:
    """Say what is wrong with an exit code and what went with it."""
    if peak_resident_bytes() > MOST_BYTES:
        return f"the process took {peak_resident_bytes():,} bytes"
    if code == 2:
        lines = [line for line in err.splitlines() if not line.startswith("[transformers]")]
        longest = 1000 + max(map(len, command))  # what was given may be shown again
        sentence = len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < longest
        return None if sentence else f"said {err[:300]!r}"
    # A spoilt lineage that still is one describes another growth, which `verify` denies.
    denied = code == 1 and command[0] == "verify" and not err.strip()
    return None if code == 0 or denied else f"ended with {code}: {err[:300]!r}"


def warm() -> None:
    """Import what commands import when they first run, which takes longer than any input."""
    for room in ("comparison", "growth.grow", "report", "training.run", "verification.verify"):
        import_module(f"deepen.{room}")


def attempts(kind: str, numbers: range, made: Path) -> list[Result]:
    """Try some inputs of a kind."""
    warm()
    return [attempt(kind, number, made) for number in numbers]


def main() -> None:
    """Try inputs of every kind in a process for each core; write or print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=500, help="inputs of each kind")
    parser.add_argument("--kind", action="append", choices=KINDS, help="this kind alone")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "materials"
        made.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            materials(made)
        kinds = given.kind or list(KINDS)
        parts = [
            (kind, range(first, min(first + 25, given.each)))
            for first in range(0, given.each, 25)
            for kind in kinds
        ]
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(cores, get_context("spawn"), max_tasks_per_child=40) as pool:
            futures = [pool.submit(attempts, kind, numbers, made) for kind, numbers in parts]
            results = []
            for future in futures:
                results += future.result()
                for result in results[-len(future.result()) :]:
                    if result.wrong:
                        print(f"{result.kind} {result.number}: {result.wrong}", flush=True)
    print(table(results), flush=True)
    if given.write:
        write(results)
    raise SystemExit(any(result.wrong for result in results))


def table(results: Sequence[Result]) -> str:
    """Count what came of the inputs of every kind, as a table of Markdown."""
    rows = ["| spoilt | inputs | refused | accepted | promise broken |", "|---|---|---|---|---|"]
    for kind in [*dict.fromkeys(result.kind for result in results), "all"]:
        of_kind = [result for result in results if kind in (result.kind, "all")]
        broken = sum(result.wrong is not None for result in of_kind)
        refused = sum(result.code == 2 and not result.wrong for result in of_kind)
        accepted = len(of_kind) - refused - broken
        rows.append(f"| {kind} | {len(of_kind):,} | {refused:,} | {accepted:,} | {broken} |")
    return "\n".join(rows) + "\n"


def write(results: Sequence[Result]) -> None:
    """Put the table into docs/reliability.md."""
    before, rest = DOCS.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    text = f"{before}{_BEGIN}\n{table(results)}\n{_END}{after}"
    DOCS.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
