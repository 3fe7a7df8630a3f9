"""A sample of what `make fuzz` tries: a malformed input is refused in one sentence, or works."""

from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepen import cli
from deepen.common.errors import DeepenError
from fuzz.change import spoilt_bytes, spoilt_tree
from fuzz.kinds import COMMANDS, KINDS, materials
from fuzz.run import MOST_BYTES, attempts, run

EACH = 25


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound inputs; read only."""
    folder = tmp_path_factory.mktemp("fuzz") / "materials"
    folder.mkdir()
    materials(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_spoilt_is_refused_in_one_sentence_or_works(made, kind):
    outcome = attempts(kind, 0, EACH, made)
    assert not outcome.broken, "\n".join(outcome.broken)
    assert outcome.refused + outcome.accepted >= EACH * 0.8  # some are drawn twice
    assert outcome.refused


def crash(*_, **__):
    raise RecursionError("too deep")


def scatter(*_, **__):
    Path("left").touch()
    raise DeepenError("Two\nlines.")


def swell(*_, **__):
    len(b"\1" * (MOST_BYTES + 10**7))
    raise DeepenError("One sentence.")


def test_memory_of_a_refusal_is_seen(made, monkeypatch):
    monkeypatch.setattr("deepen.growth.preview.open_model", swell)
    (broken, *_) = attempts("options", 0, 10, made, shrinks=False).broken
    assert " took 5" in broken


@pytest.mark.parametrize(
    ("fault", "said"), [(crash, "raised RecursionError: too deep"), (scatter, "left something")]
)
def test_a_promise_that_is_broken_is_seen_and_shrunk(made, monkeypatch, fault, said):
    monkeypatch.setattr("deepen.growth.preview.open_model", fault)
    (broken, *_) = attempts("options", 0, EACH, made).broken
    assert said in broken
    assert "Draw 1: 10\n" in broken  # the mildest of all choices
    assert "['plan', 'materials/base']" in broken


def test_options_of_every_command_that_needs_no_network_are_spoilt():
    commands = set(typer.main.get_command(cli.app).commands)
    assert commands - {command for command, *_ in COMMANDS} == {
        "demo",
        "fetch",
        "import",
        "methods",
    }


def test_sound_inputs_work(made):
    for command in (["plan", str(made / "base"), "-n", "1"], ["inspect", str(made / "grown")]):
        code, out, err = run(command)
        assert (code, err) == (0, "")
        assert out


@settings(max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_sound_is_changed(data):
    tree, content = {"a": [1, {"b": 2}], "c": "d"}, b"abc" * 9
    spoilt_tree(data, tree, 2)
    spoilt_bytes(data, content)
    assert (tree, content) == ({"a": [1, {"b": 2}], "c": "d"}, b"abc" * 9)
