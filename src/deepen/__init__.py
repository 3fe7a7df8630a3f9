"""Grow a pretrained language model deeper.

The functions here are the command line's subcommands; importing the package loads neither torch
nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen.common.errors import DeepenError as DeepenError
    from deepen.comparison import compare as compare
    from deepen.comparison.spans.scan import scan as scan
    from deepen.evaluation.evaluate import evaluate as evaluate
    from deepen.growth.grow import grow as grow
    from deepen.growth.grow import grow_model as grow_model
    from deepen.growth.preview import plan as plan
    from deepen.packs.attach import attach as attach
    from deepen.packs.combine import combine as combine
    from deepen.packs.pack import pack as pack
    from deepen.packs.reproduce import reproduce as reproduce
    from deepen.packs.shrink import shrink as shrink
    from deepen.training.run import train as train
    from deepen.verification.inspect import inspect as inspect
    from deepen.verification.verify import verify as verify

_HOME = {
    "DeepenError": "deepen.common.errors",
    "grow": "deepen.growth.grow",
    "grow_model": "deepen.growth.grow",
    "plan": "deepen.growth.preview",
    "verify": "deepen.verification.verify",
    "inspect": "deepen.verification.inspect",
    "pack": "deepen.packs.pack",
    "attach": "deepen.packs.attach",
    "shrink": "deepen.packs.shrink",
    "combine": "deepen.packs.combine",
    "reproduce": "deepen.packs.reproduce",
    "train": "deepen.training.run",
    "evaluate": "deepen.evaluation.evaluate",
    "compare": "deepen.comparison.run",
    "scan": "deepen.comparison.spans.scan",
}

__all__ = [
    "DeepenError",
    "attach",
    "combine",
    "compare",
    "evaluate",
    "grow",
    "grow_model",
    "inspect",
    "pack",
    "plan",
    "reproduce",
    "scan",
    "shrink",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'deepen' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
