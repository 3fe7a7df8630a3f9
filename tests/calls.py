"""What tests run in other processes; a child imports nothing else for it."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from deepen.common.errors import DeepenError

PATIENCE_SECONDS = 120.0


def meet(folder, mine, theirs, progress):
    """Wait for another call; return when this one ran, and in which slot."""
    started = time.monotonic()
    Path(folder, mine).touch()
    while not Path(folder, theirs).exists():
        assert time.monotonic() - started < PATIENCE_SECONDS, "the other call did not come"
        time.sleep(0.01)
    progress("met", 1.0)
    return json.dumps([os.environ["SLOT"], started, time.monotonic()])


def threads(progress):
    """Say how many threads the environment allows, and how many torch computes with."""
    import torch

    return json.dumps([os.environ["OMP_NUM_THREADS"], torch.get_num_threads()])


def sleep(folder, name, progress):
    """Leave this process's number, and that of torch's threads, and sleep."""
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0
    Path(folder, f"{name}.part").write_text(f"{os.getpid()} {threads}")
    Path(folder, f"{name}.part").rename(Path(folder, name))
    time.sleep(2 * PATIENCE_SECONDS)
    return ""


def refuse(folder, name, progress):
    """Raise, once another call is under way."""
    _await(folder, name)
    raise DeepenError("The text is empty; give another.")


def crash(progress):
    """Raise what nobody expects."""
    raise ValueError("one\ntwo")


def die(progress):
    """End as the kernel ends a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def _await(folder, name):
    """Wait for a file."""
    started = time.monotonic()
    while not Path(folder, name).exists() and time.monotonic() - started < PATIENCE_SECONDS:
        time.sleep(0.01)
