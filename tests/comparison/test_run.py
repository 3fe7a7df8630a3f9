"""A real little study: equal tokens, resume, records."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import studies
import tiny
from deepen.base.text import PASSAGE
from deepen.common.errors import DeepenError
from deepen.comparison import Study, compare
from deepen.comparison.arm import Arm
from deepen.comparison.parallel.processes import Call, CallError
from deepen.comparison.results import RECORDS, read_records
from deepen.comparison.run import _failure, _in_order

# Kills itself, and nothing else, when an arm is recorded and as many more as there are jobs run.
RUN = """
import multiprocessing, os, signal, sys
from deepen.comparison import compare, load_study

sentences, jobs = [], int(sys.argv[2])

def progress(stage, share):
    if sentences and len(multiprocessing.active_children()) == jobs:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    compare(load_study(sys.argv[1]), jobs=jobs, progress=progress, tell=sentences.append)
"""
TIMES = {"wall_seconds", "tokens_per_second", "step_time", "peak_bytes", "output", "recipe"}
TIMES |= {"matmul_flops_per_second", "utilisation", "resumed_from_step", "model", "out", "trunk"}


def settings(folder, **changes):
    return {
        "base": str(folder / "base"),
        "arms": ["base", "opt-deus"],
        "new_layers": 2,
        "seeds": [0, 1],
        "data": {"path": str(folder / "corpus.txt"), "sequence_length": 32},
        "training": {"max_steps": 3, "batch_size": 2, "learning_rate": 1e-3, "report_to": "none"},
        "evaluation": {"perplexity": str(folder / "held_out.txt")},
        "output": str(folder / "study"),
    } | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and texts."""
    folder = tmp_path_factory.mktemp("study")
    tiny.save(folder / "base", dtype=torch.float32)
    (folder / "corpus.txt").write_text(PASSAGE * 4)
    (folder / "held_out.txt").write_text(PASSAGE)
    return folder


def interrupted(folder, given, jobs):
    """Run a study until it kills itself; return the records that it left, as text."""
    (folder / "run.py").write_text(RUN)
    (folder / "study.yaml").write_text(str(given))
    command = [sys.executable, str(folder / "run.py"), str(folder / "study.yaml"), str(jobs)]
    killed = subprocess.run(command, check=False, env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    return Path(given["output"], RECORDS).read_text()


def timeless(value):
    """Return a record without what the clock, the load and the place decide."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def one_by_one(folder):
    """A study of one seed, killed and resumed; the records before and after."""
    given = settings(folder, seeds=[0])
    before = interrupted(folder, given, 1)
    compare(Study.model_validate(given), jobs=1)
    return before, read_records(folder / "study")


def test_a_killed_study_goes_on_at_the_arm_that_was_interrupted(folder, one_by_one):
    before, records = one_by_one
    assert len(before.splitlines()) == 1
    assert (folder / "study" / RECORDS).read_text().startswith(before)
    assert [(r.arm, r.seed) for r in records] == [("base", 0), ("opt-deus", 0)]
    assert not (folder / "study/arms").exists()
    other = settings(folder)["training"] | {"max_steps": 4}
    with pytest.raises(DeepenError, match=r"study with another training\.max_steps"):
        compare(Study.model_validate(settings(folder, training=other)))


def test_two_arms_at_once_are_killed_resumed_and_find_the_same(folder, one_by_one):
    given = settings(folder, output=str(folder / "both"))
    before = interrupted(folder, given, 2).splitlines()
    assert len(before) in (1, 2), "both may have finished at the same time"
    sentences = []
    summary = compare(Study.model_validate(given), jobs=2, tell=sentences.append)
    wanted = [f"{number} of 4" for number in range(len(before) + 1, 5)]
    assert [sentence.partition(":")[0] for sentence in sentences] == wanted
    lines = (folder / "both" / RECORDS).read_text().splitlines()
    assert set(before) < set(lines), "an arm that was finished ran again"
    records = read_records(folder / "both")
    wanted = [("base", 0), ("opt-deus", 0), ("base", 1), ("opt-deus", 1)]
    assert [(r.arm, r.seed) for r in records] == wanted
    for alone, together in zip(one_by_one[1], records[:2], strict=True):
        assert timeless(alone.model_dump(mode="json")) == timeless(together.model_dump(mode="json"))
    assert len({r.train.tokens for r in records}) == 1
    bases = {r.seed: r for r in records if r.arm == "base"}
    for record in records:
        assert record.before.texts[0] == bases[record.seed].before.texts[0]
        assert record.after.texts[0] != record.before.texts[0]
    assert len({r.after.texts[0].loss_nats_per_token for r in records}) == 4
    assert all(d.seeds == 2 and d.low < d.mean < d.high for d in summary.differences)
    assert not (folder / "both/arms").exists()


def test_an_arm_that_fails_ends_the_study_with_one_sentence(folder):
    data = settings(folder)["data"] | {"text_column": "txet", "path": str(folder / "rows.jsonl")}
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    given = settings(folder, output=str(folder / "bad"), data=data, arms=["base"], seeds=[0])
    with pytest.raises(DeepenError, match=r"^base, seed 0: Line 1 .* has no column 'txet'"):
        compare(Study.model_validate(given), jobs=2)
    assert not (folder / "bad" / RECORDS).exists()


def test_what_nobody_expected_leaves_its_traceback_in_a_file(folder):
    arm = Arm(method="solar")
    failed = CallError(Call("solar, seed 3", str, ()), "ValueError: no", "Traceback …")
    study = Study.model_validate(settings(folder, output=str(folder / "worse")))
    sentence = _failure(study, arm, failed)
    assert sentence.startswith("Arm solar, seed 3 failed (ValueError: no), see ")
    assert (folder / "worse/arms/solar/error.txt").read_text() == "Traceback …"


def test_one_study_at_a_time_runs_at_an_output_and_says_what_is_kept_when_it_is_ended(folder):
    refused = []
    given = Study.model_validate(settings(folder, output=str(folder / "ended"), arms=["base"]))

    def end(stage, share):
        with pytest.raises(DeepenError, match="Another run"):
            compare(given)
        refused.append(stage)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as ended:
        compare(given, progress=end)
    assert refused
    assert ended.value.__notes__[0].startswith("0 of 2 runs are recorded, and the same command")


def test_at_least_one_arm_runs_at_once(folder):
    with pytest.raises(DeepenError, match="jobs is 0"):
        compare(Study.model_validate(settings(folder)), jobs=0)


def test_records_stand_in_the_order_of_the_study(folder):
    records, _ = studies.study(arms=["base", "lesa", "solar"], seeds=(0, 1))
    given = settings(folder, arms=["solar"], seeds=[1, 0])
    study = Study.model_validate(given)
    for seed in range(3):
        mixed = random.Random(seed).sample(records, len(records))
        ordered = [(r.arm, r.seed) for r in _in_order(study, mixed)]
        assert ordered[:4] == [("base", 1), ("solar", 1), ("base", 0), ("solar", 0)]
        assert {arm for arm, _ in ordered[4:]} == {"lesa"}, "records of other arms are kept"
