"""Run calls in fresh processes, several at once; none outlives the process that started it."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from deepen.common.errors import DeepenError
from deepen.comparison.parallel.sharing import THREADS, Environment

if TYPE_CHECKING:
    from deepen.common.progress import Progress

_SECONDS_TO_END = 5.0
# Imported once, by the process that all others are forked from; half of a small arm's time else.
_PRELOADED = (
    "deepen.comparison.arms",
    "deepen.training.engine.trainers",
    "transformers.models.llama.modeling_llama",
    "lm_eval.evaluator",
)


@dataclass(frozen=True)
class Call:
    """One call that gets a process of its own."""

    name: str
    """What to call it in messages."""
    function: Callable[..., str]
    """A module's function that takes the arguments and a ``Progress``. What its module imports is
    imported before the environment is set, so torch has no place at the top of it."""
    arguments: tuple[str | float | None, ...]
    """Its arguments."""


class CallError(RuntimeError):
    """A call raised something other than ``DeepenError``, or its process died."""

    def __init__(self, call: Call, reason: str, details: str = "") -> None:
        """Say which call, and why.

        Args:
            call: The call.
            reason: Why, in a few words.
            details: The traceback, if there is one.
        """
        super().__init__(f"{call.name}: {reason}")
        self.call, self.reason, self.details = call, reason, details


def run_apart(
    calls: Sequence[Call], slots: Sequence[Environment], progress: "Progress"
) -> Generator[tuple[Call, str]]:
    """Run calls, as many at once as there are slots, and yield what they return as they end.

    When a call fails, or the caller stops listening, the calls that are under way are ended.

    Args:
        calls: In the order in which they are started.
        slots: The environment of each place that a call can run in.
        progress: Called with what the calls report, each stage behind the call's name and a colon.

    Raises:
        DeepenError: A call raised it; the sentence begins with the call's name.
        CallError: A call raised something else, or its process died.
    """
    waiting, free = deque(calls), deque(slots)
    running: dict[Connection, tuple[Call, Environment, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and free:
                call, slot = waiting.popleft(), free.popleft()
                pipe, process = _start(call, slot)
                running[pipe] = call, slot, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                call, slot, process = running[ready]
                result = _receive(ready, call, process, progress)
                if result is not None:
                    del running[ready]
                    process.join()
                    free.append(slot)
                    yield call, result
    finally:
        _end([process for _, _, process in running.values()])


def _start(call: Call, slot: Environment) -> tuple[Connection, BaseProcess]:
    """Start a call; return where it reports, and its process."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, dict(slot), call))
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    return ours, process


def _context() -> SpawnContext | ForkServerContext:
    """Return what starts processes: forks of one that has imported everything and done nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *_PRELOADED])
    return context


def _receive(
    pipe: Connection, call: Call, process: BaseProcess, progress: "Progress"
) -> str | None:
    """Take one message; return the result if it is that."""
    try:
        kind, *content = pipe.recv()
    except (EOFError, OSError):  # OSError in the middle of a message
        process.join()
        reason = f"its process ended with exit code {process.exitcode}"
        if process.exitcode is not None and process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            reason = f"its process was ended by {name}, perhaps for want of memory"
        raise CallError(call, reason) from None
    if kind == "progress":
        progress(f"{call.name}: {content[0]}", content[1])
        return None
    if kind == "refused":
        raise DeepenError(f"{call.name}: {content[0]}")
    if kind == "failed":
        raise CallError(call, content[0], content[1])
    return str(content[0])


def _end(processes: Sequence[BaseProcess]) -> None:
    """End processes that are under way."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()


def _work(pipe: Connection, environment: Environment, call: Call) -> None:
    """Make a call, in its own process."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it as well, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules and THREADS in environment:  # the user's script has imported it
        sys.modules["torch"].set_num_threads(int(environment[THREADS]))

    def report(stage: str, share: float) -> None:
        pipe.send(("progress", stage, share))

    try:
        message: tuple[str, ...] = "done", call.function(*call.arguments, report)
    except DeepenError as error:
        message = "refused", str(error)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = "failed", reason, traceback.format_exc()
    with suppress(BrokenPipeError):
        pipe.send(message)


def _end_with_parent() -> None:
    """End this process with its parent, even with one that was killed: no file has two writers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
