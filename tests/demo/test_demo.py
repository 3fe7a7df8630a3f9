"""The demo's own path, in miniature: what it claims in its table is so."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from deepen import methods
from deepen.demo.results import DemoResults, DemoRow
from deepen.demo.run import demo
from deepen.records import read_lineage


class Run(NamedTuple):
    """What one run returned and printed."""

    folder: Path
    rows: dict[str, DemoRow]
    printed: str


def run(folder: Path) -> Run:
    console = Console(file=io.StringIO(), width=100)
    rows = demo(folder, quick=True, console=console)
    return Run(folder, {row.name: row for row in rows}, console.file.getvalue())


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run in an empty folder; read only."""
    return run(tmp_path_factory.mktemp("demo"))


def test_there_is_a_row_for_the_base_the_control_and_every_method(fresh: Run):
    assert list(fresh.rows) == ["base", "base, trained on", *methods.names()]
    assert fresh.rows["base"].after is None


def test_identity_methods_start_at_the_base_s_own_perplexity(fresh: Run):
    base = fresh.rows["base"].before
    for name in methods.names():
        if methods.get(name).preserves_function:
            assert fresh.rows[name].before == base
            assert fresh.rows[name].max_abs_logit_difference == 0.0
        else:
            assert fresh.rows[name].before != base
            assert fresh.rows[name].kl_nats_per_token > 0


def test_training_improves_every_model(fresh: Run):
    for row in fresh.rows.values():
        if row.after is not None:
            assert row.after.perplexity < row.before.perplexity, row.name
            assert row.after.bits_per_byte < row.before.bits_per_byte


def test_all_models_got_one_budget(fresh: Run):
    trained = [row.training for row in fresh.rows.values() if row.training]
    assert len({(training.steps, training.tokens) for training in trained}) == 1


@pytest.mark.parametrize("name", methods.names())
def test_only_what_the_method_trains_has_changed(fresh: Run, name: str):
    grown, trained = fresh.folder / "grown" / name, fresh.folder / "trained" / name
    lineage = read_lineage(json.loads((trained / "config.json").read_text()))
    before = load_file(grown / "model.safetensors")
    after = load_file(trained / "model.safetensors")
    new = tuple(f"model.layers.{index}." for index in lineage.new_blocks)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    if lineage.steps[-1].trains == "everything":
        assert changed == set(before)
    else:
        assert changed
        assert all(key.startswith(new) for key in changed)
        assert fresh.rows[name].training.trainable_parameters == fresh.rows[name].new_parameters


def test_results_are_recorded_as_they_are_returned(fresh: Run):
    results = DemoResults.model_validate_json((fresh.folder / "results.json").read_text())
    assert results.rows == list(fresh.rows.values())
    assert not results.base_was_cached


def test_the_terminal_shows_every_row_and_what_to_try(fresh: Run):
    for name in fresh.rows:
        assert name in fresh.printed
    assert "deepen verify" in fresh.printed


def test_a_second_run_takes_the_base_and_repeats_the_numbers(fresh: Run):
    weights = fresh.folder / "base" / "model.safetensors"
    before, state = weights.stat(), torch.get_rng_state()
    again = run(fresh.folder)
    after = weights.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "found" in again.printed
    assert {name: (row.before, row.after) for name, row in again.rows.items()} == {
        name: (row.before, row.after) for name, row in fresh.rows.items()
    }
    assert torch.equal(state, torch.get_rng_state()), "the demo moved the global random state"


def test_importing_the_package_is_cheap():
    code = "import deepen.demo, sys; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
