"""The command line: output, exit codes, one sentence for every mistake."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch

import tiny
from commands import run
from deepen.base.model import open_model
from deepen.records.growth import GrowRequest


def test_the_main_job(capsys, llama, tmp_path):
    code, out, _ = run(capsys, "plan", llama)
    assert code == 0
    assert "0 1 2 [3] 4 [5] 6 [7] 8" in out
    assert not list(tmp_path.iterdir())
    code, out, _ = run(capsys, "grow", llama, tmp_path / "grown", "--set", "fidelity=published")
    assert code == 0
    assert "fidelity=published" in out
    code, out, _ = run(capsys, "verify", llama, tmp_path / "grown")
    assert code == 0
    assert "max |Δlogit| = 0.0" in out
    code, out, _ = run(capsys, "inspect", tmp_path / "grown")
    assert code == 0
    assert "step 1: opt-deus, 2|3 at t = 0.5" in out


def test_a_model_grows_in_width_instead(capsys, llama, tmp_path):
    code, out, _ = run(capsys, "widen", llama, tmp_path / "wider", "--neurons", "3")
    assert code == 0
    assert "by neurons: 3" in out
    assert "pass  computes what the base computes" in out
    code, out, _ = run(capsys, "widen", llama, tmp_path / "as", "--as-new-layers", "2", "--json")
    assert code == 0
    base = open_model(llama)
    budget, record = 2 * base.parameters_of(0), json.loads(out)
    each = record["new_parameters"] // record["neurons"]
    assert budget - each < record["new_parameters"] <= budget
    code, _, err = run(capsys, "widen", llama, tmp_path / "none", "--neurons", "3", "--device", "x")
    assert (code, "not to be had here" in err) == (2, True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["as", "wider"]
    for wrong in ([], ["--neurons", "3", "--as-new-layers", "2"]):
        code, _, err = run(capsys, "widen", llama, tmp_path / "none", *wrong)
        assert (code, err) == (
            2,
            "error: Say how much wider: either --neurons N or --as-new-layers N.\n",
        )
        assert not (tmp_path / "none").exists()


def test_new_blocks_come_off_and_go_on(capsys, llama, tmp_path):
    names = ("grown", "pack", "again", "base", "both")
    grown, pack, again, base, both = (tmp_path / name for name in names)
    run(capsys, "grow", llama, grown, "-n", "2")
    code, out, _ = run(capsys, "pack", grown, pack)
    assert code == 0
    assert "2" in out
    assert run(capsys, "attach", llama, pack, again)[0] == 0
    assert tiny.read(again) == tiny.read(grown)
    assert run(capsys, "shrink", grown, base)[0] == 0
    assert tiny.read(base) == tiny.read(llama)
    assert run(capsys, "combine", llama, pack, pack, both, "--how", "interleave")[0] == 0
    _, inspected, _ = run(capsys, "inspect", both, "--json")
    assert len(json.loads(inspected)["new_blocks"]) == 4
    assert run(capsys, "reproduce", grown, "--base", llama)[0] == 0
    (again / "model.safetensors").write_bytes(b"")
    code, _, err = run(capsys, "reproduce", again, "--base", llama)
    assert code in (1, 2)
    assert len(err.strip().splitlines()) == 1


def test_plan_shows_what_a_placement_was_chosen_by(capsys, llama, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("Where a river grows is where the ground allows. " * 20)
    code, out, _ = run(capsys, "plan", llama, "-p", "influence", "--calibration", text)
    assert code == 0
    assert re.search(
        r"scores +influence of blocks on \d+ tokens of mine.txt *\n +0: [\d.e-]+ ", out
    )


def test_plan_counts_a_last_phase_in_which_everything_trains(capsys, llama):
    costs = [
        json.loads(run(capsys, "plan", llama, "-n", "2", "--json", *more)[1])["cost"]
        for more in ([], ["--everything-for", "0.3"], ["--everything-for", "1"])
    ]
    new, both, whole = (cost["flops_per_token"] for cost in costs)
    assert both == 0.7 * new + 0.3 * whole
    assert costs[1]["label"] == "this plan, then everything (30%)"
    assert costs[1]["total_bytes"] == costs[2]["total_bytes"] > costs[0]["total_bytes"]


def test_json_is_the_record(capsys, llama, tmp_path):
    _, planned, _ = run(
        capsys, "plan", llama, "--method", "llama-pro", "--new-layers", "2", "--json"
    )
    assert json.loads(planned)["growth"]["step"]["new_blocks"] == [3, 7]
    _, grown, _ = run(capsys, "grow", llama, tmp_path / "g", "-m", "llama-pro", "-n", "2", "--json")
    step, foreseen = json.loads(grown)["step"], json.loads(planned)["growth"]["step"]
    assert foreseen["base"].pop("sha256") is None  # it takes a look at every byte
    assert len(step["base"].pop("sha256")) == 64
    assert step == foreseen
    _, verified, _ = run(capsys, "verify", llama, tmp_path / "g", "--json")
    assert json.loads(verified)["passed"] is True
    _, inspected, _ = run(capsys, "inspect", tmp_path / "g", "--json")
    assert json.loads(inspected)["new_blocks"] == [3, 7]
    _, methods, _ = run(capsys, "methods", "--json")
    assert "fidelity" in json.loads(methods)["opt-deus"]["properties"]


def test_methods_tells_options_with_their_meaning(capsys):
    code, out, _ = run(capsys, "methods")
    assert code == 0
    assert "--set fidelity=" in out
    assert "Learning rate of AdamW." in out


MISTAKES = {
    "no folder": (["grow", "nowhere", "OUT"], "There is no folder 'nowhere'"),
    "method": (
        ["grow", "BASE", "OUT", "-m", "opt-deu"],
        "Unknown method 'opt-deu'; did you mean 'opt-deus'?",
    ),
    "option": (
        ["grow", "BASE", "OUT", "--set", "fidelty=published"],
        "Unknown option of opt-deus 'fidelty'; did you mean 'fidelity'?",
    ),
    "no options": (
        ["grow", "BASE", "OUT", "-m", "solar", "--set", "d=3"],
        "Method 'solar' has no options",
    ),
    "option value": (
        ["grow", "BASE", "OUT", "--set", "fidelity=exact"],
        "Option 'fidelity' of 'opt-deus' cannot be 'exact'",
    ),
    "option number": (["grow", "BASE", "OUT", "--set", "regularisation=-1"], "greater than"),
    "option form": (["grow", "BASE", "OUT", "--set", "fidelity"], "not of the form option=value"),
    "placement": (["plan", "BASE", "-p", "tops"], "Unknown placement 'tops'; did you mean 'top'?"),
    "too many": (["plan", "BASE", "-n", "4"], "holds 3 new layers at 1 per gap, not 4"),
    "no text": (
        ["grow", "BASE", "OUT", "-p", "importance", "--calibration", "none.txt"],
        "calibration text 'none.txt' cannot be read",
    ),
    "device": (
        ["grow", "BASE", "OUT", "--device", "abacus"],
        "Device 'abacus' is not to be had here",
    ),
    "shard size": (["grow", "BASE", "OUT", "--max-shard-size", "much"], "is not a size"),
    "not grown": (["verify", "BASE", "BASE"], "deepen did not grow it"),
    "text": (["verify", "BASE", "BASE", "--text", "none.txt"], "cannot be read"),
    "no pack": (["attach", "BASE", "BASE", "OUT"], "pack.json"),
    "not to be shrunk": (["shrink", "BASE", "OUT"], "no deepen entry"),
    "not to be packed": (["pack", "BASE", "OUT"], "no deepen entry"),
    "out in model": (["grow", "BASE", "BASE/OUT"], "in MODEL's own folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_sentence_exit_2_and_nothing_written(
    capsys, llama, tmp_path, monkeypatch, case
):
    monkeypatch.chdir(tmp_path)
    arguments, sentence = MISTAKES[case]
    before = sorted(llama.iterdir())
    code, out, err = run(
        capsys, *(a.replace("BASE", str(llama)).replace("OUT", "out") for a in arguments)
    )
    assert code == 2
    assert err.startswith("error: ")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not list(tmp_path.iterdir())
    assert sorted(llama.iterdir()) == before


def test_a_failed_verification_is_exit_1(capsys, llama, tmp_path):
    run(capsys, "grow", llama, tmp_path / "grown")
    other = shutil.copytree(tmp_path / "grown", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_parameters": None}))
    code, out, _ = run(capsys, "verify", llama, other)
    assert code == 1
    assert "FAIL" in out


def test_a_machine_that_fails_is_exit_1_and_tells_how_to_go_on(
    capsys, llama, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepen.growth.write.ShardWriter.write", full)
    code, _, err = run(capsys, "grow", llama, tmp_path / "grown")
    assert code == 1
    assert "No space left on device" in err
    assert "--resume" in err
    assert not (tmp_path / "grown").exists()
    monkeypatch.undo()
    code, _, _ = run(capsys, "grow", llama, tmp_path / "grown", "--resume")
    assert code == 0


@pytest.mark.parametrize("command", ["plan", "grow"])
def test_help_tells_every_field_of_a_request_in_its_own_words(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "250")
    _, out, _ = run(capsys, command, "--help")
    for field in GrowRequest.model_fields.values():
        assert " ".join(field.description.split()) in out


@pytest.mark.parametrize("command", ["--help", "methods"])
def test_what_lists_loads_neither_torch_nor_transformers(command):
    """What makes them slow is importing; time itself is measured in benchmarks."""
    script = (
        "import sys\nfrom deepen import cli\n"
        f"try:\n    cli.main([{command!r}])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert time.perf_counter() - started < 30


def test_looking_at_a_checkpoint_loads_no_torch(llama):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "deepen", "inspect", str(llama)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "not grown by deepen" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "transformers" in loaded
    assert not [name for name in loaded if name.partition(".")[0] == "torch"]
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert not told


def test_torch_comes_back_for_pickled_weights(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.bin")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from deepen.base.weights.pickled import read_pickle\n"
        "from deepen.common.quiet import keep_torch_out\n"
        "keep_torch_out()\nassert sys.modules['torch'] is None\n"
        "print(read_pickle(Path(sys.argv[1]))['a'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "weights.bin")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[0.0, 0.0]\n"
