"""The table of growth methods, and the one way to add one.

A package of your own adds a method through the entry point group ``deepen.methods``::

    [project.entry-points."deepen.methods"]
    my-method = "my_package.my_method:METHOD"
"""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from deepen.common.errors import DeepenError, unknown
from deepen.methods.method import Method

_BUILT_IN = {
    "opt-deus": "deepen.methods.opt_deus",
    "avg-deus": "deepen.methods.avg_deus",
    "solar": "deepen.methods.solar",
    "llama-pro": "deepen.methods.llama_pro",
    "lesa": "deepen.methods.lesa",
    "random": "deepen.methods.random",
}


def names() -> list[str]:
    """Return the names of all methods, the built-in ones first."""
    added = {point.name for point in entry_points(group="deepen.methods")} - set(_BUILT_IN)
    return [*_BUILT_IN, *sorted(added)]


def get(name: str) -> Method:
    """Return a method by name, importing only its own module.

    Raises:
        DeepenError: There is no such method, or its package cannot be used.
    """
    if name in _BUILT_IN:
        method: Method = import_module(_BUILT_IN[name]).METHOD
        return method
    for point in entry_points(group="deepen.methods", name=name):
        return _load(point)
    raise unknown("method", name, names())


def _load(point: EntryPoint) -> Method:
    """Load a method of another package.

    Raises:
        DeepenError: It cannot be loaded, or is no method.
    """
    try:
        added = point.load()
    except Exception as error:  # whatever a stranger's module raises as it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DeepenError(
            f"Method {point.name!r} cannot be loaded from {point.value!r} ({reason}); correct or "
            f"uninstall the package that adds it."
        ) from None
    if not isinstance(added, Method):
        raise DeepenError(
            f"Method {point.name!r} is a {type(added).__name__} at {point.value!r}; its entry "
            f"point must name a deepen.methods.method.Method."
        )
    return added
