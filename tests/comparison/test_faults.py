"""Studies that are killed at any moment; their counts stand in docs/reliability.md.

``test_run.py`` holds two such kills in every run of the tests.
"""

import os
import signal

import pytest

import tiny
from deepen.base.text import PASSAGE
from deepen.comparison import Study, compare
from deepen.comparison.results import RECORDS, read_records, read_study
from faults import codes_of_two, in_child, tally_of

pytestmark = pytest.mark.faults
POINTS = 12
CHANGES = ("fsync", "replace", "unlink", "rmdir")
TIMES = {"wall_seconds", "tokens_per_second", "step_time", "peak_bytes", "output", "recipe"}
TIMES |= {"matmul_flops_per_second", "utilisation", "resumed_from_step", "model", "out", "trunk"}


@pytest.fixture(scope="module")
def tally():
    yield from tally_of("comparison")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return what makes a study of two arms at an output of the given name."""
    folder = tmp_path_factory.mktemp("study")
    tiny.save(folder / "base")
    (folder / "corpus.txt").write_text(PASSAGE * 4)
    (folder / "held_out.txt").write_text(PASSAGE)
    return lambda name: Study.model_validate(
        {
            "base": str(folder / "base"),
            "arms": ["base", "opt-deus"],
            "new_layers": 2,
            "data": {"path": str(folder / "corpus.txt"), "sequence_length": 32},
            "training": {"max_steps": 3, "batch_size": 2, "report_to": "none"},
            "evaluation": {"perplexity": str(folder / "held_out.txt")},
            "output": str(folder / name),
        }
    )


def timeless(value):
    """Return a record without what the clock, the load and the place decide."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def told(folder):
    """Return what a study's records say, whatever the clock says."""
    return [timeless(record.model_dump(mode="json")) for record in read_records(folder)]


def killed_at(study, nth):
    """Run a study that kills itself at the nth change of the disk or report; count them without."""
    count = 0

    def moment(*_):
        nonlocal count
        count += 1
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(real):
        def call(*given, **more):
            moment()
            return real(*given, **more)

        return call

    for name in CHANGES:
        setattr(os, name, before(getattr(os, name)))
    compare(study, jobs=1, progress=moment, tell=moment)
    return count


def test_a_study_killed_at_any_moment_ends_as_if_it_had_not_been(study, tally, tmp_path):
    (tmp_path / "count").touch()
    counted = study("counted")

    def count():
        (tmp_path / "count").write_text(str(killed_at(counted, 0)))

    assert in_child(count) == 0
    last, expected = int((tmp_path / "count").read_text()), told(tmp_path / counted.output)
    assert last > POINTS
    assert len(expected) == 2
    for index in range(POINTS):
        given = study(f"killed-{index}")
        nth = 1 + (index + 1) * (last - 1) // (POINTS + 1)
        ended = in_child(lambda g=given, n=nth: killed_at(g, n))
        assert ended == -signal.SIGKILL
        before = read_records(tmp_path / given.output)
        # In a child, as all of them: a fork cannot use its parent's server of processes.
        assert in_child(lambda g=given: compare(g, jobs=1)) == 0
        assert told(tmp_path / given.output) == expected
        lines = (tmp_path / given.output / RECORDS).read_text()
        assert all(record.model_dump_json() in lines for record in before), "it ran again"
        read_study(tmp_path / given.output)
        tally("`kill -9` of `compare` (2 arms)", f"{len(before)} of 2 arms recorded, then as whole")


def test_two_studies_at_one_output_are_one(study, tally):
    given = study("both")
    codes = codes_of_two(lambda: compare(given, jobs=1))
    assert codes == [0, 2]
    tally("two `compare` at one output at once", f"exit codes {codes[0]} and {codes[1]}")
