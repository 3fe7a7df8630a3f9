"""Compare growth methods: arms × seeds on one budget, records only."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen.comparison.run import compare as compare
    from deepen.comparison.study import Study as Study
    from deepen.comparison.study import load_study as load_study

_HOME = {"compare": "run", "Study": "study", "load_study": "study"}

__all__ = ["Study", "compare", "load_study"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'deepen.comparison' has no attribute {name!r}")
    return getattr(import_module(f"deepen.comparison.{_HOME[name]}"), name)
