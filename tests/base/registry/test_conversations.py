"""Conversations of the registry: what is joined, cut and left out."""

import json
import random
import zipfile
from pathlib import Path

import pytest

from deepen.base.registry.conversations import chitchat

A, B = "720840be", "549cc1d1"
TALK = [
    (A, "hello there, how are you doing on such a fine day?"),
    (A, "I just took a nap, one of those that do not help at all"),
    (B, "oh wow, so you still feel tired after all of that sleep"),
    (A, "yes, and I wonder what else there is to try this afternoon"),
    (B, "coffee helps me, or a walk around the block with the dog"),
    (B, "  "),
    (B, "and then a good book about ships that sail around the world"),
]


def read(folder: Path, *talks: list[tuple[str, str]]) -> dict:
    """Write talks as the package does, and read them."""
    stored = {
        f"talk-{number}": {
            "messages": [[{"sender": s, "text": t, "timestamp": ""}] for s, t in talk]
        }
        for number, talk in enumerate(talks)
    }
    file = folder / "chat.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("chitchat_dataset/dataset.json", json.dumps(stored))
    return dict(chitchat(file))


def test_a_sender_s_messages_in_a_row_are_one_turn(tmp_path: Path) -> None:
    (turns,) = read(tmp_path, TALK).values()
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
    joined = "\n".join(text for _, text in TALK if text.strip())
    assert "\n".join(turn["content"] for turn in turns) == joined


def test_an_answer_ends_each(tmp_path: Path) -> None:
    (turns,) = read(tmp_path, [*TALK, (A, "that is a question which nobody answers")]).values()
    assert turns[-1]["role"] == "assistant"
    assert turns[-1]["content"].startswith("coffee")


def test_long_ones_are_cut_behind_an_answer(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = [" ".join(draw.choices("abcdefgh", k=100)) for _ in range(99)]
    long = [((A, B)[number % 2], text) for number, text in enumerate(words)]
    (turns,) = read(tmp_path, long).values()
    assert [turn["content"] for turn in turns] == words[: len(turns)]
    length = sum(len(turn["content"]) for turn in turns)
    assert 6000 - 2 * 199 < length <= 6000
    assert len(turns) % 2 == 0


@pytest.mark.parametrize(
    "talk",
    [
        [(A, text) for _, text in TALK],
        [*TALK, ("a third one", "hello you two")],
        [(A, " ".join(t for _, t in TALK)), (B, " ".join(t[::-1] for _, t in TALK))],
        [(sender, text[:20]) for sender, text in TALK],
        [*TALK, (A, "you know " * 170), (B, "I do know that " * 30)],
        [(A, f"{text} {text}") if sender == A else (B, text[:6]) for sender, text in TALK],
        [(sender, text + "0101100101") for sender, text in TALK],
        [*TALK, *[(B, "a")] * 9],
        [*TALK, (A, "call me"), (B, "555 123 4567")],
        [*TALK, (A, "write to me"), (B, "some.body@example.org")],
    ],
    ids=[
        "one",
        "three",
        "two turns",
        "short",
        "speech",
        "alone",
        "digits",
        "spam",
        "phone",
        "mail",
    ],
)
def test_what_is_no_conversation_is_left_out(tmp_path: Path, talk: list[tuple[str, str]]) -> None:
    assert list(read(tmp_path, talk, TALK)) == ["talk-1"]
