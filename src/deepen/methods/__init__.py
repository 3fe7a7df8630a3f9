"""The table of growth methods, and the one way to add one.

A package of your own adds a method through the entry point group ``deepen.methods``::

    [project.entry-points."deepen.methods"]
    my-method = "my_package.my_method:METHOD"
"""

from importlib import import_module

from deepen.common.errors import unknown
from deepen.common.plugins import added, added_names
from deepen.methods.method import Method

_GROUP = "deepen.methods"
_BUILT_IN = {
    "opt-deus": "deepen.methods.opt_deus",
    "avg-deus": "deepen.methods.avg_deus",
    "solar": "deepen.methods.solar",
    "llama-pro": "deepen.methods.llama_pro",
    "lesa": "deepen.methods.lesa",
    "repeat": "deepen.methods.repeat",
    "random": "deepen.methods.random",
}


def names() -> list[str]:
    """Return the names of all methods, the built-in ones first."""
    return [*_BUILT_IN, *(name for name in added_names(_GROUP) if name not in _BUILT_IN)]


def is_method(name: str) -> bool:
    """Whether a method has this name; what other packages add is looked up last: it takes long."""
    return name in _BUILT_IN or name in names()


def get(name: str) -> Method:
    """Return a method by name, importing only its own module.

    Raises:
        DeepenError: There is no such method, or its package cannot be used.
    """
    if name in _BUILT_IN:
        method: Method = import_module(_BUILT_IN[name]).METHOD
        return method
    other = added(_GROUP, name, Method)
    if other is None:
        raise unknown("method", name, names())
    return other
