"""Telling how far work has come, and what a person should know."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done and the finished share of it, 0 to 1."""


def silent(stage: str, share: float) -> None:
    """Report progress to nobody."""


Tell = Callable[[str], None]
"""Called with sentences for the person at the terminal."""


def unheard(sentence: str) -> None:
    """Tell nobody."""
