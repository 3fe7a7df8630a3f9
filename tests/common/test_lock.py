"""One writer at a place."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepen.common.errors import DeepenError
from deepen.common.lock import locked

HOLD = """
import sys, pathlib
from deepen.common.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a place."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_process_is_told_who_writes(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for name in ("out", "link", "../" + tmp_path.name + "/out"):
        sentence = rf"Another run \(process {holder.pid}\) is writing '.*{name}'; wait"
        with pytest.raises(DeepenError, match=sentence), locked(tmp_path / name):
            pass
    with locked(tmp_path / "elsewhere"):
        pass


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".out.deepen-lock").exists()
    with locked(tmp_path / "out"):
        assert (tmp_path / ".out.deepen-lock").read_text().split()[0] == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_second_lock_in_the_same_process_is_refused_too(tmp_path):
    with locked(tmp_path / "out"):
        with pytest.raises(DeepenError, match="Another run"), locked(tmp_path / "out"):
            pass
        with pytest.raises(DeepenError, match="Another run"), locked(tmp_path / "out"):
            pass


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, None])
def test_nothing_stays_but_what_was_written(tmp_path: Path, error):
    out = tmp_path / "a/b/out"
    try:
        with locked(out):
            if error:
                raise error
            out.mkdir()
    except (OSError, KeyboardInterrupt):
        pass
    assert [f.name for f in tmp_path.rglob("*")] == ([] if error else ["a", "b", "out"])
