"""Kills, full disks and second runs, on real processes; the large sweeps are ``make test-faults``.

Their counts are the table of docs/reliability.md.
"""

import io
import os
import resource
import signal
import subprocess
import sys

import pytest

import deepen
import tiny
from deepen import cli
from deepen.common import folders
from deepen.common.errors import DeepenError
from faults import in_child, tally_of

HOW = {"method": "llama-pro", "new_layers": 1, "max_shard_size": "60KB"}
COMMAND = ["-m", "llama-pro", "-n", "1", "--max-shard-size", "60KB"]
CHANGES = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")
few_and_many = pytest.mark.parametrize(
    "points", [3, pytest.param(40, marks=pytest.mark.faults)], ids=["few", "many"]
)


@pytest.fixture(scope="module")
def results(llama, tmp_path_factory):
    """The bytes of an uninterrupted run, and of another checkpoint that may lie in its place."""
    folder = tmp_path_factory.mktemp("results")
    deepen.grow(llama, folder / "new", **HOW)
    deepen.grow(llama, folder / "old", method="llama-pro", new_layers=2)
    return {name: tiny.read(folder / name) for name in ("new", "old")}


@pytest.fixture(scope="module")
def tally():
    """Count what was done and found; written into the docs if asked for."""
    yield from tally_of("growing")


class Killer:
    """Kills its own process at the nth moment: a change of the disk, or a tensor that is made."""

    def __init__(self, nth):
        self.nth, self.count = nth, 0

    def moment(self, *_):
        self.count += 1
        if self.count == self.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, real):
        def call(*given, **more):
            self.moment()
            return real(*given, **more)

        return call

    def grow(self, base, out, **how):
        for name in CHANGES:
            setattr(os, name, self.before(getattr(os, name)))
        folders.exchange = self.before(folders.exchange)
        deepen.grow(base, out, **HOW, **how, progress=self.moment)


def moments(base, out, **how):
    """Count the moments of an uninterrupted run."""
    reader, writer = os.pipe()

    def count():
        killer = Killer(0)
        killer.grow(base, out, **how)
        os.write(writer, str(killer.count).encode())

    assert in_child(count) == 0
    os.close(writer)
    with os.fdopen(reader) as stream:
        return int(stream.read())


@few_and_many
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_any_moment_leaves_old_or_new_and_resumes_to_the_same_bytes(
    llama, results, tmp_path, tally, points, overwrite
):
    old = results["old"] if overwrite else None
    names = ["whole", *map(str, range(points))]
    for name in names if overwrite else []:
        for file, content in results["old"].items():
            (tmp_path / name / "out").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "out" / file).write_bytes(content)
    last = moments(llama, tmp_path / "whole/out", overwrite=overwrite)
    assert last > points
    for index in range(points):
        out = tmp_path / str(index) / "out"
        killer = Killer(1 + index * (last - 1) // (points - 1))
        assert in_child(lambda k=killer, o=out: k.grow(llama, o, overwrite=overwrite)) == -9
        found = tiny.read(out) if out.exists() else None
        assert found in (old, results["new"])
        if found == results["new"] and not overwrite:
            with pytest.raises(DeepenError, match="exists"):
                deepen.grow(llama, out, **HOW, resume=True)
        else:
            deepen.grow(llama, out, **HOW, overwrite=overwrite, resume=True)
        assert tiny.read(out) == results["new"]
        assert [file.name for file in out.parent.iterdir()] == ["out"]
        what = "new, whole" if found == results["new"] else "old, whole" if found else "nothing"
        with_old = "over an old checkpoint" if overwrite else "to an empty place"
        tally(f"`kill -9` of `grow` {with_old}, `--resume`", f"{what} → the same bytes")


def limited(size, arguments):
    """Run a command with a limit on the size of a file: a disk that is full there."""
    sys.stdout = sys.stderr = io.StringIO()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    cli.main(arguments)


@few_and_many
def test_a_disk_that_is_full_leaves_nothing_at_out_and_resumes(
    llama, results, tmp_path, tally, points
):
    largest = max(map(len, results["new"].values()))
    for index in range(min(points, 15)):
        out, size = tmp_path / f"{index}/out", 100 + index * largest // min(points, 15)
        arguments = ["grow", str(llama), str(out), *COMMAND]
        assert in_child(lambda s=size, a=arguments: limited(s, a)) == 1
        assert not out.exists()
        deepen.grow(llama, out, **HOW, resume=out.parent.exists())
        assert tiny.read(out) == results["new"]
        tally("no more room on the disk, `--resume`", "nothing → the same bytes")


@pytest.mark.faults
def test_of_two_runs_to_one_place_one_writes(llama, results, tmp_path, tally):
    for index in range(6):
        out = tmp_path / str(index) / "out"
        command = [sys.executable, "-m", "deepen", "grow", str(llama), str(out), *COMMAND]
        command += ["--overwrite"] if index % 2 else []
        both = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        errors = [run.communicate()[1] for run in both]
        codes = sorted(run.returncode for run in both)
        assert tiny.read(out) == results["new"]
        assert [file.name for file in out.parent.iterdir()] == ["out"]
        refused = [error for error in errors if error]
        assert codes == [0, 2] if refused else codes == [0, 0]
        assert not refused or index % 2 or "exists" in refused[0] or "Another run" in refused[0]
        told = "one wrote, one was refused" if refused else "one after the other"
        tally("two `grow` to one place at once", told)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_place_that_another_user_prepared_is_not_used(llama, tmp_path):
    out = tmp_path / "out"
    assert in_child(lambda: Killer(12).grow(llama, out)) == -9
    os.chown(tmp_path / ".out.deepen-unfinished", 12345, 12345)
    for how in ({"resume": True}, {"overwrite": True}, {}):
        with pytest.raises(DeepenError, match="was not made by a run of yours"):
            deepen.grow(llama, out, **HOW, **how)
