"""The demo's own path in miniature: what its table says is so."""

import io
import json

import pytest
from rich.console import Console

from deepen.demo.run import demo

IDENTITY = ("opt-deus", "opt-deus (fidelity=published)", "llama-pro")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run once in an empty folder; give the folder, the records and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    console = Console(file=io.StringIO(), width=120)
    records = demo(folder, "tiny", console)
    return folder, {record.arm: record for record in records}, console.file.getvalue()


def test_every_method_both_fidelities_and_the_base_are_arms(run):
    _, records, printed = run
    assert list(records) == ["base", *IDENTITY[:2], "avg-deus", "solar", "llama-pro", "lesa"]
    assert all(arm in printed for arm in records)


def test_identity_methods_start_where_the_base_is_and_all_move(run):
    _, records, _ = run
    start = records["base"].before.texts[0].loss_nats_per_token
    for arm, record in records.items():
        before, after = record.before.texts[0], record.after.texts[0]
        assert (before.loss_nats_per_token == start) == (arm in ("base", *IDENTITY))
        assert after.loss_nats_per_token != before.loss_nats_per_token
        assert (record.verification is not None) == (arm != "base")
        assert record.fine_tuning is not None
        assert record.after_fine_tuning is not None


def test_every_arm_saw_the_same_tokens(run):
    _, records, _ = run
    assert len({record.train.tokens for record in records.values()}) == 1
    assert len({record.fine_tuning.tokens for record in records.values()}) == 1


def test_a_second_run_trains_nothing(run):
    folder, records, _ = run
    weights = (folder / "base/model/model.safetensors").stat()
    lines = (folder / "study/records.jsonl").read_text()
    again = demo(folder, "tiny", Console(file=io.StringIO()))
    assert (folder / "base/model/model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert (folder / "study/records.jsonl").read_text() == lines
    assert [r.arm for r in again] == list(records)
    assert json.loads((folder / "study/summary.json").read_text())["arms"] == list(records)
    assert (folder / "study/report.html").is_file()
