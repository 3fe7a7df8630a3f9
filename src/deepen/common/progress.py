"""Telling how far work has come."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done and the finished share of it, 0 to 1."""


def silent(stage: str, share: float) -> None:
    """Report progress to nobody."""
