"""Spoil bytes, texts and trees, by seeds."""

import json
from random import Random
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 99, 255, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**20),
    *(0.0, -0.5, 1e-9, 1e18, 1e300, float("nan"), float("inf"), -float("inf"), 10**400),
    *("", "0", "x", "auto", "../x", "/dev/zero", "a\0b", "ä\n[red]", "\ud800", "9" * 5000, " " * 9),
    *([], {}, [[]], {"a": {}}, ["x"], [1, 2, 3], [None], {"": None}, [0] * 6, ["full_attention"]),
)
"""What no field expects, and what some do."""
DEEP = '{"a":' * 3000 + "1" + "}" * 3000


def spoilt_bytes(random: Random, content: bytes, within: int = 2**30) -> bytes:
    """Flip, cut, repeat or put in bytes near the beginning."""
    content, last = bytearray(content), min(within, len(content)) - 1
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randint(0, last)
        how = random.randrange(5)
        if how == 0:
            content[place] ^= 1 << random.randrange(8)
        elif how == 1:
            content[place] = random.randrange(256)
        elif how == 2:
            del content[place : place + random.choice((1, 7, 2**20))]
        elif how == 3:
            content[place:place] = random.randbytes(random.choice((1, 8, 100)))
        else:
            content[place:place] = content[: random.choice((1, 8, 100))]
        last = min(last, len(content) - 1)
        if last < 0:
            break
    return bytes(content)


def spoilt_tree(random: Random, tree: Any, changes: int = 1) -> Any:
    """Replace, drop, double or rename something in a tree of JSON; the tree itself is left."""
    tree = json.loads(json.dumps(tree))
    for _ in range(changes):
        place = tree
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = random.choice(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and inner and random.random() < 0.75:
                place = inner
                continue
            _spoil(random, place, key)
            break
    return tree


def _spoil(random: Random, place: Any, key: Any) -> None:
    """Change one entry."""
    how, value = random.randrange(10), place[key]
    if how == 0:
        del place[key]
    elif how == 1 and isinstance(place, list):
        place.insert(key, value)
    elif how == 1:
        place[f"{key}s"] = place.pop(key)
    elif how == 2 and isinstance(value, int | float):
        place[key] = value + random.choice((-1, 1, 0.5, 10**6, -(10**6)))
    elif how == 3:
        place[key] = [value] * random.choice((1, 3, 1000))
    else:
        place[key] = random.choice(NASTY)


def as_json(random: Random, tree: Any) -> bytes:
    """Write a tree as JSON, now and then in a form that readers do not expect."""
    text = json.dumps(tree)
    how = random.randrange(12)
    if how == 0:
        return text.encode("utf-16")
    if how == 1:
        return b"\xef\xbb\xbf" + text.encode()
    if how == 2:
        return spoilt_bytes(random, text.encode())
    if how == 3:
        return text.replace("{", '{"deep": ' + random.choice(("[" * 9999, DEEP)) + ",", 1).encode()
    return text.encode()
