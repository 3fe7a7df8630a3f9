"""How commands end: by a mistake, by the system, by a signal, each in one sentence that is true."""

import json
import os
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout

import pytest

import studies
import tiny
from commands import run
from deepen import cli
from deepen.base.text import PASSAGE
from deepen.common.settings import write_yaml
from deepen.growth.grow import grow
from deepen.packs.pack import pack
from faults import give_up_rights, in_child

ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def sentence_of(err):
    """Return the one line that a command printed, without its label."""
    (line,) = err.strip().splitlines()
    return line.removeprefix("error: ")


def at_call(monkeypatch, name, nth, do):
    """Let something happen at the nth call of one of the system's functions."""
    real, count = getattr(os, name), [0]

    def call(*given, **more):
        count[0] += 1
        if count[0] == nth:
            do()
        return real(*given, **more)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "b", "--seed", "x"], "Invalid value for '--seed'"),
        (["verify", "b", "g", "--length", "0"], "Invalid value for '--length'"),
        (["combine", "b", "p", "q", "o", "--how", "both"], "'both' is not one of 'interleave'"),
        (["grow"], "Missing argument 'model'; see `"),
        (["grow", "b", "o", "--sed", "3"], "No such option: --sed"),
        (["grwo"], "No such command 'grwo'. Did you mean 'grow'?"),
        (["train", "cpt"], "Missing argument 'recipe'"),
    ],
)
def test_a_command_line_that_is_none_is_one_sentence(capsys, arguments, said):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in sentence_of(err)


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_without_a_command_the_help_is_printed(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (2, "")
    assert "Usage" in out


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_says_what_is_kept_and_how_to_go_on(capsys, llama, tmp_path, monkeypatch, number):
    grow = ["grow", llama, tmp_path / "grown", "-n", "1", "--max-shard-size", "60KB"]
    handlers = [signal.getsignal(one) for one in ENDS]
    at_call(monkeypatch, "fsync", 9, lambda: os.kill(os.getpid(), number))
    code, out, err = run(capsys, *grow)
    monkeypatch.undo()
    assert (code, out) == (ENDS[number], "")
    assert sentence_of(err) == (
        f"Ended by {signal.Signals(number).name}; what is finished is kept, and the same command "
        f"with --resume goes on."
    )
    assert handlers == [signal.getsignal(one) for one in ENDS]
    assert run(capsys, *grow, "--resume")[0] == 0
    assert [file.name for file in tmp_path.iterdir()] == ["grown"]


def test_what_cannot_be_resumed_leaves_nothing(capsys, llama, tmp_path, monkeypatch):
    run(capsys, "grow", llama, tmp_path / "grown", "-n", "1")
    pack = ["pack", tmp_path / "grown", tmp_path / "pack"]
    at_call(monkeypatch, "fsync", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = run(capsys, *pack)
    assert code == 143
    assert sentence_of(err).startswith("Ended by SIGTERM; nothing was written to '")
    monkeypatch.undo()
    at_call(monkeypatch, "fsync", 3, lambda: os.truncate(tmp_path / "gone", 0))
    code, _, err = run(capsys, *pack)
    assert code == 1
    assert sentence_of(err).startswith("No such file or directory: ")
    assert "; nothing was written to '" in err
    assert [file.name for file in tmp_path.iterdir()] == ["grown"]


def test_only_what_is_true_of_a_command_is_said_of_it(capsys, tmp_path, monkeypatch):
    """``train`` has no --resume, and nothing was finished."""
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "file"
    recipe.write_text(f"model: x\ndata: {{path: y}}\noutput: {file / 'out'}\n")
    file.touch()
    at_call(monkeypatch, "stat", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = run(capsys, "train", "cpt", recipe)
    assert code == 130
    assert "--resume" not in err.replace("--no-resume", "")
    assert sentence_of(err).endswith("the same command goes on from there.")


@pytest.fixture(scope="module")
def sound(llama, tmp_path_factory):
    """What commands read: a base, what was grown of it, a pack, a recipe, a study and its file."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "base").symlink_to(llama)
    grow(llama, folder / "grown", new_layers=1, method="llama-pro")
    pack(folder / "grown", folder / "pack")
    (folder / "text.txt").write_text(PASSAGE)
    data, trained = {"path": "text.txt", "sequence_length": 16}, {"max_steps": 1, "batch_size": 1}
    write_yaml(folder / "recipe.yaml", {"model": "grown", "data": data, "training": trained})
    asked = {"base": "base", "arms": ["base"], "data": data, "training": trained}
    write_yaml(folder / "study.yaml", asked | {"evaluation": {"perplexity": "text.txt"}})
    studies.write(folder / "locked", *studies.study(seeds=(0,)))
    return folder


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, "grow base locked/out -n 1"),
        (2, "grow base locked/out -n 1 --resume"),
        (2, "widen base locked/out --neurons 2"),
        (2, "pack grown locked/out"),
        (2, "attach base pack locked/out"),
        (2, "shrink grown locked/out"),
        (2, "combine base pack pack locked/out --how interleave"),
        (1, "train cpt recipe.yaml output=locked/out"),
        (1, "compare study.yaml output=locked/out"),
        (1, "report locked"),
    ],
)
def test_a_place_that_must_not_be_written_to_is_one_sentence(sound, tmp_path, code, command):
    shutil.copytree(sound, tmp_path / "here", symlinks=True)
    locked, said = tmp_path / "here" / "locked", tmp_path / "said"
    before = tiny.read(locked)
    locked.chmod(0o555)

    def end():
        give_up_rights()
        os.chdir(locked.parent)
        with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            cli.main(command.split())

    assert in_child(end) == code, said.read_text()
    assert "Permission denied" in sentence_of(said.read_text())
    assert tiny.read(locked) == before


@pytest.mark.parametrize("name", ["d[/x]", "[bold]", ":smile:", "a b\tc"])
def test_a_name_is_text_and_no_markup(capsys, llama, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run(capsys, "grow", llama, name, "-n", "1")
    assert (code, err) == (0, "")
    assert name.split("\t")[0] in out
    assert tiny.read(tmp_path / name)


def test_a_forked_worker_ends_by_a_signal_as_it_would_without_us():
    ready, tell = os.pipe()
    with cli._signals_raised():
        child = os.fork()
        if child == 0:
            os.write(tell, b"1")
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_name_that_no_file_system_takes_is_bad_input(capsys, llama):
    code, _, err = run(capsys, "plan", "x" * 5000)
    assert code == 2
    assert sentence_of(err).startswith("File name too long: '")


@pytest.mark.parametrize(
    "plan", [[*range(6), [5, 5]], [*range(5), [4, 4, 0.0]], [*range(7), [5, 5, 0.0]]]
)
def test_what_was_grown_by_a_plan_that_is_none_grows_no_further(capsys, llama, tmp_path, plan):
    run(capsys, "grow", llama, tmp_path / "grown", "-n", "1", "-m", "llama-pro")
    file = tmp_path / "grown" / "config.json"
    config = json.loads(file.read_text())
    new = [i for i, block in enumerate(plan) if not isinstance(block, int)]
    config["deepen"]["steps"][0] |= {"plan": plan, "new_blocks": new}
    file.write_text(json.dumps(config | {"deepen": config["deepen"] | {"new_blocks": new}}))
    for command in (["plan", tmp_path / "grown"], ["grow", tmp_path / "grown", tmp_path / "out"]):
        code, _, err = run(capsys, *command, "-n", "1")
        assert code == 2
        assert "deepen entry" in sentence_of(err)
    assert not (tmp_path / "out").exists()
