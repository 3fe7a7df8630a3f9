"""Train a grown model on transformers' and TRL's own engines."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepen.training.recipe import load_recipe as load_recipe
    from deepen.training.run import train as train

__all__ = ["load_recipe", "train"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name == "train":
        from deepen.training.run import train

        return train
    if name == "load_recipe":
        from deepen.training.recipe import load_recipe

        return load_recipe
    raise AttributeError(f"module 'deepen.training' has no attribute {name!r}")
