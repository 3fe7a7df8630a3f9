"""A real little study: equal tokens, resume, records."""

import os
import signal
import subprocess
import sys

import pytest
import torch

import tiny
from deepen.comparison import Study, compare
from deepen.comparison.run import RECORDS, read_records
from deepen.errors import DeepenError
from deepen.passage import PASSAGE

RUN = """
import os, signal, sys
from deepen.comparison import compare, load_study
from deepen.cli import main

def told(sentence):
    if sentence.startswith("2 of"):
        os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":
    os.setpgid(0, 0)
    compare(load_study(sys.argv[1]), tell=told)
"""


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


def test_a_killed_study_goes_on_at_the_arm_that_was_interrupted(folder):
    (folder / "run.py").write_text(RUN)
    (folder / "study.yaml").write_text(str(settings(folder)))
    command = [sys.executable, str(folder / "run.py"), str(folder / "study.yaml")]
    killed = subprocess.run(command, check=False, env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = (folder / "study" / RECORDS).read_text()
    assert len(before.splitlines()) == 2
    summary = compare(Study.model_validate(settings(folder)))
    records = read_records(folder / "study")
    assert (folder / "study" / RECORDS).read_text().startswith(before)
    assert {(r.arm, r.seed) for r in records} == {(a, s) for a in summary.arms for s in (0, 1)}
    assert len({r.train.tokens for r in records}) == 1
    by_seed = {r.seed: r for r in records if r.arm == "base"}
    for record in records:
        assert record.before.texts[0] == by_seed[record.seed].before.texts[0]
        assert record.after.texts[0] != record.before.texts[0]
    losses = [r.after.texts[0].loss_nats_per_token for r in sorted(records, key=lambda r: r.seed)]
    assert len(set(losses)) == 4
    assert all(d.seeds == 2 and d.low < d.mean < d.high for d in summary.differences)
    assert not (folder / "study/arms").exists()
    other = settings(folder)["training"] | {"max_steps": 4}
    with pytest.raises(DeepenError, match=r"study with another training\.max_steps"):
        compare(Study.model_validate(settings(folder, training=other)))


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / RECORDS).write_text('{"arm": 1}\n')
    with pytest.raises(DeepenError, match="a line that is no record"):
        read_records(tmp_path)
