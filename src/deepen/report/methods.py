"""The growth methods and their options in a terminal."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from deepen.methods.method import Method


def method_table(methods: Sequence["Method"]) -> Table:
    """Show every method with its own options, and at the end those that several share."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    users: dict[tuple[type[BaseModel], str], list[Method]] = {}
    for method in methods:
        for name in method.options.model_fields:
            users.setdefault((_owner(method.options, name), name), []).append(method)
    for method in methods:
        function = "keeps" if method.preserves_function else "changes"
        table.add_row(method.name, f"{method.summary} ({method.reference})")
        trains = method.trains.replace("_", " ")
        table.add_row("", f"{function} the base's function; trains {trains}")
        for (_, name), having in users.items():
            if having == [method]:
                table.add_row("", _option(method.options, name))
        table.add_row()
    shared = [(owner, name) for (owner, name), having in users.items() if len(having) > 1]
    for owner, options in groupby(shared, key=lambda option: option[0]):
        heirs = [method.name for method in methods if issubclass(method.options, owner)]
        table.add_row("shared", f"by {', '.join(heirs)}")
        for _, name in options:
            table.add_row("", _option(owner, name, users[owner, name]))
        table.add_row()
    return table


def _owner(options: type[BaseModel], name: str) -> type[BaseModel]:
    """Return the class that first declares an option."""
    classes = [c for c in options.__mro__ if issubclass(c, BaseModel) and name in c.model_fields]
    return classes[-1]


def _option(options: type[BaseModel], name: str, users: Iterable["Method"] = ()) -> Text:
    """Write an option, its default and its meaning, and which methods have another default."""
    field = options.model_fields[name]
    others: dict[object, list[str]] = {}
    for method in users:
        if (default := method.options.model_fields[name].default) != field.default:
            others.setdefault(default, []).append(method.name)
    elsewhere = "".join(f" ({default} in {', '.join(of)})" for default, of in others.items())
    meaning = " ".join((field.description or "").replace("`", "").split())
    return Text(f"--set {name}={field.default}{elsewhere}").append(f" {meaning}", "dim")
