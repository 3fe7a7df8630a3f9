"""Spoil inputs, use them through the command line, and hold what comes of it to the promise.

hypothesis draws what is spoilt, by seeds, and shrinks what breaks the promise to the mildest change
that still does. ``make fuzz`` tries 5,460 and writes the table of docs/reliability.md; what it has
done is kept in ``runs/fuzz`` as long as no source changes, so that it can be ended and goes on.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.strategies import DataObject

from deepen import cli
from deepen.common.errors import DeepenError
from deepen.common.system import peak_resident_bytes
from fuzz.change import chance
from fuzz.kinds import KINDS, Command, materials

MOST_SECONDS, MOST_BYTES = 10.0, 500 * 10**6
"""Processor time of one command; memory that it takes beside what the process held before."""
AT_ONCE, A_SEED = 60, 10
"""Inputs of one task, and those that one seed draws: hypothesis draws ten afresh, and then mostly
copies parts of those."""
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- fuzz -->\n", "<!-- /fuzz -->\n"
_WORKS = ("train", "compare")
"""Commands that may go on for as long, and take as much memory, as they are asked to."""


@dataclass(frozen=True)
class Outcome:
    """What came of the inputs of one task."""

    kind: str
    """What was spoilt."""
    number: int
    """Which one of its kind."""
    refused: int
    """Inputs that got exit code 2 and one sentence."""
    accepted: int
    """Inputs that worked."""
    broken: list[str]
    """Of every seed that draws one, the mildest input that breaks the promise, and how."""


class TooLongError(BaseException):
    """A command took more than its time; no handler of errors must catch it."""


def run(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code, and what it said and warned."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """End what computes for too long, and the whole process if it waits for something."""

    def end(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, end)
    # Again and again: what is raised while garbage is collected is lost.
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS, 1.0)
    faulthandler.dump_traceback_later(30 * MOST_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def arms_here(calls: Sequence[Any], slots: Any, progress: Any) -> Generator[tuple[Any, str]]:
    """Run a study's arms in this process: each its own would import for seconds."""
    for call in calls:
        try:
            yield call, call.function(*call.arguments, progress)
        except DeepenError as error:
            raise DeepenError(f"{call.name}: {error}") from None


def attempt(kind: str, data: DataObject, made: Path) -> tuple[int, str | None]:
    """Spoil one input and use it.

    Args:
        kind: What is spoilt.
        data: Decides how.
        made: The sound inputs.

    Returns:
        Exit code of the last command that ran, and what breaks the promise, if anything does.
    """
    with tempfile.TemporaryDirectory(dir=made.parent) as place:
        folder = Path(place, "here")
        folder.mkdir()
        for name in ("corpus.txt", "held_out.txt", "rows.jsonl"):
            shutil.copy(made / name, folder)
        (folder / "materials").symlink_to(made)

        def copy(name: str) -> Path:
            return Path(shutil.copytree(made / name, folder / name))

        with (
            contextlib.chdir(folder),
            patch("tempfile.tempdir", place),
            patch("deepen.comparison.run.run_apart", arms_here),
            warnings.catch_warnings(),
        ):
            commands = KINDS[kind](data, folder, copy)
            warnings.simplefilter("ignore")
            for index, command in enumerate(commands):
                code, wrong = _use(command, Path(place), first=index == 0)
                if code or wrong:
                    break
    return code, wrong and f"{' '.join(command)[:300]!r} {wrong}"


def _use(command: Command, place: Path, *, first: bool) -> tuple[int, str | None]:
    """Run one command; return its exit code, and what is wrong with how it went."""
    before, held = _there(place), _memory_from_here()
    try:
        with watched():
            code, out, err = run(command)
    except TooLongError:
        return 0, None if _begun(command, place) else f"took more than {MOST_SECONDS:g} s"
    except BaseException as error:  # whatever escapes is what is looked for
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " ← ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
        return 1, f"raised {type(error).__name__}: {str(error)[:200]} ({where})"
    taken = peak_resident_bytes() - held
    if taken > MOST_BYTES and not _begun(command, place):
        return code, f"took {taken:,} bytes"
    if code == 2:
        if _there(place) != before and not _begun(command, place):
            return 2, f"left something behind: {err[:300]!r}"
        # What was grown must verify, unless the base itself runs nowhere, which only running shows.
        if command[0] == "verify" and not first and "transformers cannot run" not in err:
            return 2, f"refuses what was accepted: {err[:300]!r}"
        return 2, _no_sentence(err)
    # A spoilt lineage or manifest that still is one describes another model, which is denied.
    denied = code == 1 and first and command[0] in ("verify", "reproduce") and not err.strip()
    failed = " ".join(line for line in [*err.splitlines(), *out.splitlines()] if line[:4] != "pass")
    return (0, None) if code == 0 or denied else (code, f"ended with {code}: {failed[:500]!r}")


def _no_sentence(err: str) -> str | None:
    """Say what is wrong with a refusal's words."""
    words = err.removesuffix("\n")
    sentence = words.startswith("error: ") and words.isprintable() and len(words) < 5000
    return None if sentence else f"said {err[:300]!r}"


def _begun(command: Command, place: Path) -> bool:
    """Whether a training or a study was found sound and begun; what it has then done is kept."""
    noted = [*place.rglob("*/recipe.yaml"), *place.rglob("*/study.yaml")]
    return command[0] in _WORKS and any(file.parent.name != "here" for file in noted)


def _there(folder: Path) -> dict[str, tuple[int, int]]:
    """List what is in a folder, by size and time of the last change."""
    found = {str(path): path.lstat() for path in folder.rglob("*") if not path.is_dir()}
    return {path: (at.st_size, at.st_mtime_ns) for path, at in found.items()}


def _memory_from_here() -> int:
    """Let the system note the peak of this process's memory anew; return what it is now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_resident_bytes()


def warm() -> None:
    """Import what commands import when they first run, which takes longer than any input."""
    for room in ("comparison.arms", "growth.grow", "report", "training.run", "verification.verify"):
        import_module(f"deepen.{room}")


def attempts(kind: str, number: int, count: int, made: Path, *, shrinks: bool = True) -> Outcome:
    """Try inputs of a kind; of what a seed draws, up to one that breaks the promise."""
    warm()
    set_hypothesis_home_dir(made.parent)
    codes, broken = list[int](), list[str]()

    def hold(data: DataObject) -> None:
        assume(chance(data, 90))  # the first is the mildest of all choices, for every seed
        code, wrong = attempt(kind, data, made)
        codes.append(code)
        assert wrong is None, wrong

    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    phases = (Phase.generate, *([Phase.shrink] if shrinks else ()))
    for first in range(0, count, A_SEED):
        most = settings(max_examples=min(A_SEED, count - first), phases=phases, **quiet)
        try:
            seed(number * count + first)(most(given(st.data())(hold)))()
        except Exception as error:  # hypothesis has errors of its own, for example of flakiness
            broken.append("\n  ".join([str(error), *getattr(error, "__notes__", ())]))
    refused = codes.count(2)
    return Outcome(kind, number, refused, len(codes) - refused, broken)


def main() -> None:
    """Try inputs of every kind in a process for each core; write or print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=420, help=f"inputs a kind, by {AT_ONCE}")
    parser.add_argument("--kind", action="append", choices=KINDS, help="this kind alone")
    parser.add_argument("--as-drawn", action="store_true", help="do not shrink what fails: minutes")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    given_ = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    kinds = given_.kind or list(KINDS)
    wanted = [(kind, number) for number in range(given_.each // AT_ONCE) for kind in kinds]
    kept = _kept()
    done = {(outcome.kind, outcome.number): outcome for outcome in _done(kept)}
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "materials"
        made.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            materials(made)
        cores = len(os.sched_getaffinity(0))
        # The index of lm-evaluation-harness is read once a process, for seconds.
        first = (["evaluate", str(made / "grown"), "--tasks", "x"],)
        spawn = get_context("spawn")
        with ProcessPoolExecutor(cores, spawn, initializer=run, initargs=first) as pool:
            todo = [
                pool.submit(attempts, *one, AT_ONCE, made, shrinks=not given_.as_drawn)
                for one in wanted
                if one not in done
            ]
            for future in as_completed(todo):
                outcome = future.result()
                done[outcome.kind, outcome.number] = outcome
                for wrong in outcome.broken:
                    print(f"{outcome.kind} {outcome.number}: {wrong}\n", flush=True)
                if not outcome.broken:
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
    outcomes = [done[one] for one in wanted]
    print(table(outcomes), flush=True)
    if given_.write and kept == _kept():
        write(outcomes)
    raise SystemExit(any(outcome.broken for outcome in outcomes))


def _kept() -> Path:
    """Return where what was found of these very sources is kept."""
    files = sorted([*(ROOT / "src").rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    state = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    folder = ROOT / "runs" / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{state[:12]}.jsonl"


def _done(kept: Path) -> list[Outcome]:
    """Read what was found; a line that a kill cut short is left out."""
    lines = kept.read_text(encoding="utf-8").split("\n")[:-1] if kept.is_file() else []
    return [Outcome(**json.loads(line)) for line in lines]


def table(outcomes: Sequence[Outcome]) -> str:
    """Count what came of the inputs of every kind, as a table of Markdown."""
    rows = ["| spoilt | inputs | refused | accepted | promise broken |", "|---|---|---|---|---|"]
    for kind in [*dict.fromkeys(outcome.kind for outcome in outcomes), "all"]:
        of_kind = [outcome for outcome in outcomes if kind in (outcome.kind, "all")]
        refused, accepted = (sum(getattr(o, n) for o in of_kind) for n in ("refused", "accepted"))
        broken = sum(len(outcome.broken) for outcome in of_kind)
        rows.append(f"| {kind} | {refused + accepted:,} | {refused:,} | {accepted:,} | {broken} |")
    return "\n".join(rows) + "\n"


def write(outcomes: Sequence[Outcome]) -> None:
    """Put the table into docs/reliability.md."""
    before, rest = DOCS.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    text = f"{before}{_BEGIN}\n{table(outcomes)}\n{_END}{after}"
    DOCS.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
