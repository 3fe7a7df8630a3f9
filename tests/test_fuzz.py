"""A sample of what `make fuzz` tries: a malformed input is refused in one sentence, or works."""

from pathlib import Path
from random import Random

import pytest

from fuzz.change import spoilt_bytes, spoilt_tree
from fuzz.kinds import KINDS, materials
from fuzz.run import attempt, attempts, run, table

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
    results = attempts(kind, range(EACH), made)
    assert not [result for result in results if result.wrong]
    # What lies beside the weights comes along as it is.
    refused = any(result.code == 2 for result in results)
    assert refused or kind.startswith("tokenizers"), table(results)


def test_a_promise_that_is_broken_is_seen(made, monkeypatch):
    def crash(*_, **__):
        raise RecursionError("too deep")

    monkeypatch.setattr("deepen.growth.preview.open_model", crash)
    wrong = {attempt("options", number, made).wrong for number in range(EACH)}
    assert "RecursionError: too deep" in wrong


def test_sound_inputs_work(made):
    for command in (["plan", str(made / "base"), "-n", "1"], ["inspect", str(made / "grown")]):
        assert run(command) == (0, "")


def test_seeds_decide_and_nothing_sound_is_changed():
    tree = {"a": [1, {"b": 2}], "c": "d"}
    spoilt = [repr(spoilt_tree(Random(seed), tree)) for seed in range(50)]
    assert spoilt == [repr(spoilt_tree(Random(seed), tree)) for seed in range(50)]
    assert len({*spoilt}) > 20
    assert tree == {"a": [1, {"b": 2}], "c": "d"}
    assert spoilt_bytes(Random(1), b"abc" * 9) == spoilt_bytes(Random(1), b"abc" * 9)
