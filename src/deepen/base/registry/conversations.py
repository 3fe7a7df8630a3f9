"""Conversations of a registry package as chat rows: a user, an assistant, in turns."""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Turn = dict[str, str]
"""``role`` and ``content``."""
Conversations = Mapping[str, list[Turn]]
"""Name → turns."""

_ROLES = ("user", "assistant")
_FEWEST = 4  # turns
_LONGEST, _SHORTEST = 6000, 300  # characters of a conversation
_LONGEST_TURN = 1500
_LEAST_SHARE = 0.2  # of the characters, for either side
_LEAST_LETTERS = 0.85  # letters and blanks, of all characters
_LEAST_NEW = 0.8  # messages that stand in a conversation for the first time
_CONTACT = re.compile(r"\d{3}[-. ]?\d{3}[-. ]?\d{4}|\S@\S+\.\w|https?:")


def chitchat(wheel: Path) -> Conversations:
    """Read chitchat-dataset: what pairs of people typed to each other.

    Messages that one sends in a row are one turn, a line each. Whoever begins is the user, and an
    answer ends each conversation. A long one is cut behind the last answer that fits. Left out is
    what has one sender or three, fewer than four turns or 300 characters, a side that hardly
    speaks, a turn that is a speech, or nonsense; and what says where somebody can be reached.

    Args:
        wheel: The package's wheel.
    """
    with zipfile.ZipFile(wheel) as archive:
        stored = json.loads(archive.read("chitchat_dataset/dataset.json"))
    turns = {name: _turns(entry["messages"]) for name, entry in stored.items()}
    return {name: kept for name, found in turns.items() if _is_sound(kept := _cut(found))}


def _turns(groups: Iterable[Iterable[Mapping[str, Any]]]) -> list[Turn]:
    """Join what one sender writes in a row; nothing if there are not two senders."""
    messages = [(m["sender"], m["text"].strip()) for group in groups for m in group]
    if len({sender for sender, _ in messages}) != len(_ROLES):
        return []
    said = groupby((m for m in messages if m[1]), key=lambda message: message[0])
    contents = ["\n".join(text for _, text in run) for _, run in said]
    return [
        {"role": _ROLES[number % 2], "content": content} for number, content in enumerate(contents)
    ]


def _cut(turns: Sequence[Turn]) -> list[Turn]:
    """Return the first turns that fit, an answer last."""
    kept: list[Turn] = []
    length = 0
    for turn in turns:
        length += len(turn["content"])
        if length > _LONGEST:
            break
        kept.append(turn)
    return kept[: len(kept) // 2 * 2]


def _is_sound(turns: Sequence[Turn]) -> bool:
    """Tell a conversation from what is none."""
    contents = [turn["content"] for turn in turns]
    text = "\n".join(contents)
    if len(turns) < _FEWEST or len(text) < _SHORTEST or _CONTACT.search(text):
        return False
    answers = sum(map(len, contents[1::2])) / sum(map(len, contents))
    letters = sum(c.isalpha() or c.isspace() for c in text) / len(text)
    lines = text.split("\n")
    return (
        max(map(len, contents)) <= _LONGEST_TURN
        and _LEAST_SHARE <= answers <= 1 - _LEAST_SHARE
        and letters >= _LEAST_LETTERS
        and len(set(lines)) >= _LEAST_NEW * len(lines)
    )
