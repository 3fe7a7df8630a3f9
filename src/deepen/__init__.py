"""Grow a pretrained language model deeper.

The functions here are the command line's subcommands; importing the package loads neither torch
nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen.comparison import compare as compare
    from deepen.errors import DeepenError as DeepenError
    from deepen.evaluation import evaluate as evaluate
    from deepen.growth import grow as grow
    from deepen.growth import grow_model as grow_model
    from deepen.inspection import inspect as inspect
    from deepen.planning import plan as plan
    from deepen.training.run import train as train
    from deepen.verification import verify as verify

_HOME = {
    "DeepenError": "deepen.errors",
    "grow": "deepen.growth",
    "grow_model": "deepen.growth",
    "plan": "deepen.planning",
    "verify": "deepen.verification",
    "inspect": "deepen.inspection",
    "train": "deepen.training.run",
    "evaluate": "deepen.evaluation",
    "compare": "deepen.comparison",
}

__all__ = [
    "DeepenError",
    "compare",
    "evaluate",
    "grow",
    "grow_model",
    "inspect",
    "plan",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'deepen' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
