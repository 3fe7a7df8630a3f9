"""What other packages add, through entry points."""

from importlib.metadata import entry_points
from typing import TypeVar

from deepen.common.errors import DeepenError

T = TypeVar("T")


def added_names(group: str) -> list[str]:
    """Return the names of what installed packages add to a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def added(group: str, name: str, kind: type[T]) -> T | None:
    """Load what a package adds under a name; ``None`` if none does.

    Raises:
        DeepenError: It cannot be loaded, or is of another kind.
    """
    for point in entry_points(group=group, name=name):
        try:
            loaded = point.load()
        except Exception as error:  # whatever a stranger's module raises as it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DeepenError(
                f"{kind.__name__} {name!r} cannot be loaded from {point.value!r} ({reason}); "
                f"correct or uninstall the package that adds it."
            ) from None
        if not isinstance(loaded, kind):
            raise DeepenError(
                f"{kind.__name__} {name!r} of {point.value!r} is a {type(loaded).__name__} and no "
                f"{kind.__module__}.{kind.__name__}; correct or uninstall the package that adds it."
            )
        return loaded
    return None
