"""Calls in processes of their own: at once, in order, and never left behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import calls
from deepen.common.errors import DeepenError
from deepen.comparison.parallel.processes import Call, CallError, run_apart

# A script as users write them: each child imports torch with it, before its environment is set.
SLEEPERS = """
import sys
import torch

sys.path.append(sys.argv[2])
import calls
from deepen.comparison.parallel.processes import Call, run_apart

if __name__ == "__main__":
    both = [Call(name, calls.sleep, (sys.argv[1], name)) for name in ("a", "b")]
    list(run_apart(both, [{"OMP_NUM_THREADS": "3"}] * 2, lambda stage, share: None))
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_of(folder, name):
    calls._await(folder, name)
    return int((folder / name).read_text().split()[0])


def test_calls_run_at_once_and_a_slot_has_one_at_a_time(tmp_path):
    reports, met = [], []
    pairs = [("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")]
    wanted = [
        Call(f"call {mine}", calls.meet, (str(tmp_path), mine, other)) for mine, other in pairs
    ]
    slots = [{"SLOT": "first"}, {"SLOT": "second"}]
    for call, result in run_apart(wanted, slots, lambda *report: reports.append(report)):
        met.append((call.name, *json.loads(result)))
    assert sorted(name for name, *_ in met) == ["call a", "call b", "call c", "call d"]
    assert {slot for _, slot, *_ in met} == {"first", "second"}
    for (_, slot, start, end), (_, other, later, _) in itertools.combinations(
        sorted(met, key=lambda entry: entry[2]), 2
    ):
        assert start <= later
        assert slot != other or end <= later, "two calls were in one slot"
    assert sorted(reports) == [(f"call {name}: met", 1.0) for name in "abcd"]


def test_a_refusal_ends_what_is_under_way_and_starts_nothing_more(tmp_path):
    wanted = [
        Call("bad", calls.refuse, (str(tmp_path), "sleeper")),
        Call("good", calls.sleep, (str(tmp_path), "sleeper")),
        Call("later", calls.sleep, (str(tmp_path), "later")),
    ]
    with pytest.raises(DeepenError, match=r"^bad: The text is empty; give another\.$"):
        list(run_apart(wanted, [{}, {}], lambda *report: None))
    assert not is_alive(pid_of(tmp_path, "sleeper"))
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize(
    ("function", "reason", "details"),
    [
        (calls.crash, "ValueError: one two", 'raise ValueError("one\\ntwo")'),
        (calls.die, "its process was ended by SIGKILL, perhaps for want of memory", ""),
    ],
)
def test_a_call_that_fails_is_named_with_its_reason(function, reason, details):
    call = Call("bad", function, ())
    with pytest.raises(CallError) as failed:
        list(run_apart([call], [{}], lambda *report: None))
    assert (failed.value.call, failed.value.reason) == (call, reason)
    assert details in failed.value.details


def test_a_slot_says_how_many_threads_there_are():
    ((_, result),) = run_apart(
        [Call("threads", calls.threads, ())], [{"OMP_NUM_THREADS": "3"}], lambda *report: None
    )
    assert json.loads(result) == ["3", 3]


def test_what_a_process_of_a_study_imports_first_is_without_torch():
    code = "import sys; from deepen.comparison.parallel import processes, worker"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_calls_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    tests = str(Path(calls.__file__).parent)
    with subprocess.Popen([sys.executable, str(script), str(tmp_path), tests]) as parent:
        try:
            pids = [pid_of(tmp_path, name) for name in ("a", "b")]
            assert all(map(is_alive, pids))
            assert (tmp_path / "a").read_text().split()[1] == "3", "threads as the slot has it"
        finally:
            parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + calls.PATIENCE_SECONDS
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, pids))
