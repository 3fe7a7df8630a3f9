"""Conversations as messages with role and content, however a row writes them."""

from collections.abc import Mapping
from typing import Any

from deepen.common.errors import DeepenError
from deepen.training.data.files import Row, capitalised, said_of

Turn = dict[str, Any]
"""A message: ``role``, ``content`` and whatever else a chat template reads."""

# ShareGPT's names of who speaks, and those that its many copies use.
_SPEAKERS: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def messages_of(value: object, row: Row) -> list[Turn]:
    """Read a list of messages; content that comes in parts is joined.

    Raises:
        DeepenError: They are none, or hold something else than text.
    """
    said = value if isinstance(value, list) else []
    sound = (isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in said)
    if not said or not all(sound):
        raise DeepenError(
            f"{capitalised(row.where)} holds no messages with role and content where they are "
            f"expected."
        )
    return [dict(turn) | {"content": _text_of(turn["content"], row)} for turn in said]


def conversation_of(row: Row) -> list[Turn]:
    """Read the column ``conversations``: ShareGPT's turns with from and value, or messages.

    A column ``system`` beside it stands before them.

    Raises:
        DeepenError: A turn is neither, or nobody knows who speaks.
    """
    value, system = row.columns["conversations"], row.columns.get("system")
    said = value if isinstance(value, list) else []
    if said and all(isinstance(turn, Mapping) and "from" in turn for turn in said):
        turns = [_from_sharegpt(turn, row) for turn in said]
    else:
        turns = messages_of(value, row)
    if isinstance(system, str) and system and turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    return turns


def in_parts(content: object) -> object:
    """Write text as the one part of a message."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _from_sharegpt(turn: Mapping[str, Any], row: Row) -> Turn:
    """Turn ShareGPT's from and value into role and content."""
    speaker = turn["from"]
    if speaker not in _SPEAKERS:
        raise DeepenError(
            f"{capitalised(row.where)} has a turn from {speaker!r}; conversations are read from "
            f"{', '.join(_SPEAKERS)}."
        )
    return {"role": _SPEAKERS[speaker], "content": _text_of(turn.get("value"), row)}


def _text_of(content: object, row: Row) -> str | None:
    """Join the parts of a message's content; null stays, as beside calls of tools."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DeepenError(
            f"{capitalised(row.where)} has a message whose content is {said_of(content)}; it must "
            f"be text, or a list of parts of type text."
        )
    return "".join(_text_of_part(part, row) for part in content)


def _text_of_part(part: object, row: Row) -> str:
    """Return the text of a part of a message."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else None
    raise DeepenError(
        f"{capitalised(row.where)} has a message with a part of type {kind!r}; training is on text "
        f"alone, so leave such rows out."
    )
