"""The sources of a recipe's data: each is read, cut and kept by itself, and all lie in a row."""

from collections.abc import Callable, Sequence
from typing import Any

from deepen.training.data.mixture import Mixture
from deepen.training.recipe import DataConfig, MixedSource


def sources(data: DataConfig) -> list[DataConfig]:
    """List the data sets that data consist of, the main one first, each as if it stood alone."""
    return [data.model_copy(update={"mix": []}), *(_alone(data, mixed) for mixed in data.mix)]


def load_sources(
    data: DataConfig,
    load: Callable[[DataConfig], Any],
    join: Callable[[Sequence[Any]], Any],
) -> tuple[Any, Mixture]:
    """Load every source of data.

    Args:
        data: Which data.
        load: Loads one of them.
        join: Puts several data sets one behind the other.

    Returns:
        All sequences or rows, and where each source lies among them.

    Raises:
        DeepenError: A source is missing or damaged, or has nothing to learn from.
    """
    loaded = [load(source) for source in sources(data)]
    mixture = Mixture(tuple(map(len, loaded)), tuple(data.shares))
    return (join(loaded) if data.mix else loaded[0]), mixture


def _alone(data: DataConfig, mixed: MixedSource) -> DataConfig:
    """Fill in what a source of a mixture leaves to the main data.

    Configuration and revision belong to one hub data set and are never another's.
    """
    own = {"path": mixed.path, "name": mixed.name, "revision": mixed.revision, "mix": []}
    said = {key: getattr(mixed, key) for key in ("text_column", "separator", "split")}
    return data.model_copy(update=own | {k: v for k, v in said.items() if v is not None})
