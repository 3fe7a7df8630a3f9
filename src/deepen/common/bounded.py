"""Files that people write, read within bounds: a damaged or hostile one gets a sentence.

A text is a regular file of a bounded size in UTF-8, with or without a byte order mark; what it
holds is nested only so deep and has only so many parts. A pipe or a device would be read forever,
and a few bytes of brackets or of aliases can ask for all memory there is.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deepen.common.errors import DeepenError

MOST_BYTES = 2**28
"""Size of the largest text that is read as a whole."""
MOST_LEVELS = 64
"""How deep lists and mappings may be nested."""
MOST_PARTS = 2**22
"""How many values, and lists and mappings of them, a text may hold."""
MOST_DIGITS = 100
"""Length of the longest number."""


def read_text(file: str | Path, most_bytes: int = MOST_BYTES) -> str:
    """Read a text file as a whole; line ends become those of Unix.

    Args:
        file: The file; links are followed.
        most_bytes: Size of the largest that is read.

    Raises:
        DeepenError: It is missing, too large, not UTF-8, or no regular file.
    """
    name, content = repr(str(file)), b""
    try:
        # Without waiting for somebody who writes into a pipe.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            content = stream.read(most_bytes + 1) if regular else b""
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise DeepenError(f"{name} cannot be read ({reason}); check the path.") from None
    if not regular:
        raise DeepenError(f"{name} is no regular file; check the path.")
    if len(content) > most_bytes:
        raise DeepenError(
            f"{name} is larger than {most_bytes:,} bytes, the most that is read here; check what "
            f"it is."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DeepenError(
            f"{name} cannot be read (it is not UTF-8 text); save it as UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_regular(file: Path) -> None:
    """Refuse what is there and is no file, before it is opened: a pipe would be waited for.

    Raises:
        DeepenError: It is a folder, a pipe or a device.
    """
    if file.exists() and not file.is_file():
        raise DeepenError(f"{str(file)!r} is no regular file; check the path.")


def check_parts(text: str, name: str) -> None:
    """Refuse JSON text that would become too many values, before it is read.

    Raises:
        DeepenError: It has more parts than are read.
    """
    if sum(map(text.count, ",[{")) >= MOST_PARTS:
        raise DeepenError(f"{name} has more than {MOST_PARTS:,} parts; check what it is.")


def read_json(file: str | Path) -> Any:  # noqa: ANN401 (whatever the JSON holds)
    """Read a JSON file.

    Raises:
        DeepenError: See ``read_text`` and ``parse_json``.
    """
    return parse_json(read_text(file), repr(str(file)))


def parse_json(text: str, name: str) -> Any:  # noqa: ANN401
    """Read JSON text.

    Args:
        text: The text.
        name: What to call it in an error.

    Raises:
        DeepenError: It is not JSON, is nested too deep, has too many parts or too long a number, or
            holds half of a surrogate pair, which no file can be written with.
    """
    check_parts(text, name)
    try:
        content = json.loads(text, parse_int=_integer)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise too_deep(name) from None
    except UnicodeEncodeError:
        raise DeepenError(
            f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; "
            f"correct it."
        ) from None
    except ValueError as error:
        raise DeepenError(f"{name} is not valid JSON ({error}); correct it.") from None
    level: list[Any] = [content]
    for _ in range(MOST_LEVELS + 1):
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise too_deep(name)
    return content


def too_deep(name: str) -> DeepenError:
    """Make the error for a text that is nested too deep."""
    return DeepenError(f"{name} is nested more than {MOST_LEVELS} levels deep; check what it is.")


def _integer(digits: str) -> int:
    """Read a whole number."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _inside(value: object) -> Iterable[Any]:
    """Return what a list or a mapping holds."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
