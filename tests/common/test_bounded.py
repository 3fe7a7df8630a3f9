"""Texts that would hang a reader or take all memory get one sentence, in no time."""

import json
import os
import time

import pytest

from deepen.common.bounded import MOST_LEVELS, parse_json, read_json, read_text
from deepen.common.errors import DeepenError
from deepen.common.settings import apply_overrides, read_yaml

DEEP = 100_000
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


def refused(read, *arguments):
    started = time.monotonic()
    with pytest.raises(DeepenError) as caught:
        read(*arguments)
    assert time.monotonic() - started < 10
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    return sentence


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("depth", [MOST_LEVELS + 1, 3_000, DEEP])
def test_json_may_be_nested_only_so_deep(opening, depth):
    closing = opening.translate(str.maketrans("[{", "]}", '"a:'))[::-1]
    assert "levels deep" in refused(parse_json, opening * depth + "1" + closing * depth, "it")


def test_json_of_the_greatest_depth_is_read():
    text = "[" * MOST_LEVELS + "]" * MOST_LEVELS
    assert parse_json(text, "it") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1" * 5_000, "5,000 digits"),
        ("[" + "[]," * 2**22 + "[]]", "parts"),
        ('"\\ud800"', "surrogate"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_beyond_bounds_is_told(text, said):
    assert said in refused(parse_json, text, "it")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: " + "[" * DEEP, "levels deep"),
        ("x: " + "{a: " * 3_000, "levels deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(MOST_LEVELS + 2)), "levels deep"),
        (LAUGHS, "parts"),
        ("a: &a [*a]", "alias of itself"),
        ("x: *nowhere", "nowhere"),
        ("x: " + "9" * 5_000, "5,000 digits"),
        ("x: " + "1:" * 3_000 + "1", "digits"),
        ("x: !!int x", "tags"),
        ("x: !!bool x", "tags"),
        ("x: !!timestamp x", "tags"),
        ("x: !!python/name:os.system x", "tags"),
        ("x: !!set {a}", "tags"),
        ("[" + "x, " * 11_000 + "x]", "parts"),
    ],
)
def test_yaml_beyond_bounds_is_told(tmp_path, text, said):
    file = tmp_path / "t.yaml"
    file.write_text(text)
    assert said in refused(read_yaml, file)
    if not text.startswith(("x", "[")):
        return
    assert said in refused(apply_overrides, {}, [f"a={text.removeprefix('x: ')}"])


def test_dates_and_ordinary_aliases_are_read(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\nf: 2001-99-99\ng: !!str 5\n")
    read = read_yaml(file)
    assert read == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}} | {
        "f": "2001-99-99",
        "g": "5",
    }


def test_only_a_regular_file_of_utf_8_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        assert "no regular file" in refused(read_text, tmp_path / name)
    assert "cannot be read" in refused(read_text, tmp_path)
    assert "null byte" in refused(read_text, "a\0b")
    file = tmp_path / "f"
    file.write_bytes('{"ä": 1}'.encode("utf-16"))
    assert "not UTF-8" in refused(read_json, file)
    file.write_bytes(b"\xef\xbb\xbf" + '{"ä":\r\n1}'.encode())
    assert read_json(file) == {"ä": 1}
    assert read_text(file) == '{"ä":\n1}'
    assert "larger than 4 bytes" in refused(read_text, file, 4)
