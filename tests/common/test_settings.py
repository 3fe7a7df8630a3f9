"""Settings: YAML in; a checked model, or one sentence that helps, out."""

from pathlib import Path
from typing import Any, Literal

import pytest

from deepen.common.errors import DeepenError
from deepen.common.settings import (
    Settings,
    apply_overrides,
    differences,
    read_yaml,
    validate,
    write_yaml,
)


class Inner(Settings):
    """A part."""

    learning_rate: float = 1.0
    trains: Literal["auto"] | list[int] = "auto"


class Arm(Settings):
    """An entry of a list."""

    method: str
    options: tuple[str, ...] = ()


class Outer(Settings):
    """The whole."""

    model: str
    training: Inner
    arms: tuple[str | Arm, ...] = ()


def write(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_written_tree_is_read_back(tmp_path: Path) -> None:
    tree = {"a": 1e-05, "b": ["x: y", None, True, "ü"], "c": {"d": "1e-3", "e": {}}}
    write_yaml(tmp_path / "t.yaml", tree)
    assert read_yaml(tmp_path / "t.yaml") == tree


@pytest.mark.parametrize("number", ["1e-3", "1.e-3", "0.1e-2", "+1E-3", ".1e-2"])
def test_exponents_without_a_dot_are_numbers(tmp_path: Path, number: str) -> None:
    assert read_yaml(write(tmp_path, f"x: {number}"))["x"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "twice"),
        ("- 1\n- 2", "no keys and values"),
        ("", "no keys and values"),
        ("a: [1", "line 1"),
        ("a: {b: 1\nc", "line 2"),
    ],
)
def test_unusable_yaml_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DeepenError, match=said):
        read_yaml(write(tmp_path, text))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match=r"nowhere.yaml' cannot be read \(No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_overrides_win_and_leave_the_tree_alone() -> None:
    tree: dict[str, Any] = {"a": {"b": 1, "c": [1, {"d": 2}]}}
    changed = apply_overrides(tree, ["a.b=1e-4", "a.c.1.d=[x, 2]", "new.key=true", "none=null"])
    assert changed == {
        "a": {"b": 1e-4, "c": [1, {"d": ["x", 2]}]},
        "new": {"key": True},
        "none": None,
    }
    assert tree == {"a": {"b": 1, "c": [1, {"d": 2}]}}


def test_every_difference_is_named_with_both_values() -> None:
    old = {"output": "a", "data": {"path": "x", "cache": "c", "columns": [1]}, "seed": 0}
    new = {"output": "b", "data": {"path": "y", "cache": "d", "columns": [2]}, "cache": {"k": 1}}
    assert list(differences(old, new, {"output", "data.cache"})) == [
        ("cache", None, {"k": 1}),
        ("data.columns", [1], [2]),
        ("data.path", "x", "y"),
        ("seed", 0, None),
    ]
    assert [key for key, _, _ in differences(old, new)][2:4] == ["data.columns", "data.path"]
    assert not list(differences(old, old))


@pytest.mark.parametrize("override", ["a", "=1", "a..b=1", "a.b.c=1", "a.c.7=1", "a=[1"])
def test_an_override_that_does_not_fit_is_told(override: str) -> None:
    with pytest.raises(DeepenError) as caught:
        apply_overrides({"a": {"b": 1, "c": [1]}}, [override])
    assert override in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modle": 1}, "Unknown key 'modle' in s.yaml; did you mean 'model'?"),
        (
            {"training": {"learning_rte": 1}},
            "Unknown key 'training.learning_rte' in s.yaml; did you mean 'training.learning_rate'?",
        ),
        (
            {"learning_rate": 1},
            "Unknown key 'learning_rate' in s.yaml; did you mean 'training.learning_rate'?",
        ),
        ({"zzz": 1}, "Unknown key 'zzz' in s.yaml; choose one of: model, training, arms."),
        (
            {"arms": ["x", {"methd": "y"}]},
            "Unknown key 'arms.1.methd' in s.yaml; did you mean 'arms.1.method'?",
        ),
        ({"arms": [{"options": []}]}, "s.yaml lacks the key 'arms.0.method'; add it."),
    ],
)
def test_unknown_and_missing_keys_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DeepenError) as caught:
        validate(Outer, {"model": "m", "training": {}} | change, "s.yaml")
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("change", "start"),
    [
        (
            {"training": {"learning_rate": "a"}},
            "'training.learning_rate' in s.yaml cannot be 'a': ",
        ),
        ({"training": {"trains": ["q"]}}, "'training.trains.0' in s.yaml cannot be 'q': "),
        ({"training": 3}, "'training' in s.yaml cannot be 3: "),
        ({"arms": [{"method": [1]}]}, "'arms.0.method' in s.yaml cannot be [1]: "),
    ],
)
def test_a_value_that_does_not_fit_is_named(change: dict[str, Any], start: str) -> None:
    with pytest.raises(DeepenError) as caught:
        validate(Outer, {"model": "m", "training": {}} | change, "s.yaml")
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
