"""Spoil bytes, texts and trees: what hypothesis draws decides where and how.

The first of every choice is the mildest, since a failure is shrunk towards it.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

Kind = TypeVar("Kind")
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 99, 255, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**20),
    *(0.0, -0.5, 1e-9, 1e18, 1e300, float("nan"), float("inf"), -float("inf"), 10**400),
    *("", "0", "x", "auto", "../x", "/dev/zero", "a\0b", "ä\n[red]", "\ud800", "\x1b[2J\r\u202e"),
    *("9" * 5000, " " * 9, "x" * 5000, "\u2028"),
    *([], {}, [[]], {"a": {}}, ["x"], [1, 2, 3], [None], {"": None}, [0] * 6, ["full_attention"]),
)
"""What no field expects, and what some do."""
_WORDS = st.text("aZ01 .,-_~:;#&*%$@\"'`\\{}[]()<>|\n\t\0\x85é中\u202e\ufeff😀", max_size=8)
"""Texts of signs that mean something somewhere, but no path out of the folder at hand."""
_ANYTHING: st.SearchStrategy[Any] = st.sampled_from(NASTY) | st.recursive(
    st.integers() | st.floats() | _WORDS | st.sampled_from(NASTY),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner),
    max_leaves=6,
)
# Copies, since what is put into a tree may be spoilt there by the next change.
ANYTHING = _ANYTHING.map(deepcopy)
DEEP = '{"a":' * 3000 + "1" + "}" * 3000


def one(data: DataObject, of: Sequence[Kind]) -> Kind:
    """Choose one of several."""
    return data.draw(st.sampled_from(of))


def chance(data: DataObject, percent: int) -> bool:
    """Say yes so often."""
    return data.draw(st.integers(0, 99)) >= 100 - percent


def spoilt_bytes(data: DataObject, content: bytes, within: int = 2**30) -> bytes:
    """Flip, cut, repeat or put in bytes near the beginning."""
    spoilt = bytearray(content)
    for _ in range(one(data, (1, 1, 2, 8))):
        if not spoilt:
            break
        place = data.draw(st.integers(0, min(within, len(spoilt)) - 1))
        how = one(data, ("flip", "set", "cut", "put", "repeat"))
        if how == "flip":
            spoilt[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "set":
            spoilt[place] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del spoilt[place : place + one(data, (1, 7, 2**20))]
        elif how == "put":
            spoilt[place:place] = data.draw(st.binary(min_size=1, max_size=100))
        else:
            spoilt[place:place] = spoilt[: one(data, (1, 8, 100))]
    return bytes(spoilt)


def spoilt_tree(data: DataObject, tree: Any, changes: int = 1) -> Any:
    """Replace, drop, double or rename something in a tree of JSON; the tree itself is left."""
    tree = json.loads(json.dumps(tree))
    for _ in range(changes):
        if not tree:
            break
        if chance(data, 50):
            _spoil(data, *one(data, list(_places(tree))))
            continue
        place = tree
        while True:  # to the entries of a short list as often as to those of a long one
            key = one(data, list(place) if isinstance(place, dict) else range(len(place)))
            if not _holds(place[key]) or chance(data, 25):
                break
            place = place[key]
        _spoil(data, place, key)
    return tree


def _holds(value: Any) -> bool:
    """Whether there is something inside."""
    return isinstance(value, dict | list) and bool(value)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield everything that holds something, with each of its keys."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if _holds(tree[key]):
            yield from _places(tree[key])


def _like(value: Any) -> st.SearchStrategy[Any]:
    """Say what is of a value's own type, so that not all are refused for that."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int | float):
        near = st.integers(0, 8) | st.sampled_from((0.0, 0.1, 0.5, 0.99, 1e-5, 1e3, -1, 64))
        return near | st.integers() | st.floats()
    if isinstance(value, str):
        return st.sampled_from([text for text in NASTY if isinstance(text, str)]) | _WORDS
    return ANYTHING


def _spoil(data: DataObject, place: Any, key: Any) -> None:
    """Change one entry."""
    value = place[key]
    how = one(data, ("like",) * 8 + ("replace",) * 4 + ("drop", "rename", "move", "repeat"))
    if how == "drop":
        del place[key]
    elif how == "rename" and isinstance(place, list):
        place.insert(key, value)
    elif how == "rename":
        place[f"{key}s"] = place.pop(key)
    elif how == "move" and isinstance(value, int | float):
        place[key] = value + one(data, (1, -1, 0.5, 10**6, -(10**6)))
    elif how == "repeat":
        place[key] = [value] * one(data, (1, 3, 1000))
    else:
        place[key] = data.draw(_like(value) if how == "like" else ANYTHING)


def as_json(data: DataObject, tree: Any) -> bytes:
    """Write a tree as JSON, now and then in a form that readers do not expect."""
    text = json.dumps(tree)
    how = one(data, ("plain",) * 20 + ("marked", "utf-16", "spoilt", "deep"))
    if how == "utf-16":
        return text.encode("utf-16")
    if how == "marked":
        return b"\xef\xbb\xbf" + text.encode()
    if how == "spoilt":
        return spoilt_bytes(data, text.encode())
    if how == "deep":
        return text.replace("{", '{"deep": ' + one(data, ("[" * 9999, DEEP)) + ",", 1).encode()
    return text.encode()
