"""The table of growth methods, and the one way to add one.

A package of your own adds a method through the entry point group ``deepen.methods``::

    [project.entry-points."deepen.methods"]
    my-method = "my_package.my_method:METHOD"
"""

from importlib import import_module
from importlib.metadata import entry_points

from deepen.common.errors import unknown
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
        DeepenError: There is no such method.
    """
    if name in _BUILT_IN:
        method: Method = import_module(_BUILT_IN[name]).METHOD
        return method
    for point in entry_points(group="deepen.methods", name=name):
        added: Method = point.load()
        return added
    raise unknown("method", name, names())
