"""Options that several subcommands share, and how their records are printed."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepen.common.errors import DeepenError
from deepen.common.settings import validate
from deepen.records.growth import GrowRequest

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

Model = Annotated[
    str, typer.Argument(help="Checkpoint folder, hub id, or registry:NAME.", show_default=False)
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu, cuda, cuda:1.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Hub branch, tag or commit.")]
PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="REPO",
        help="Upload the result to the hub, as REPO.",
        show_default=False,
    ),
]
Private = Annotated[bool, typer.Option("--private", help="Let nobody else see REPO.")]
Out = Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what lies at OUT.")]
MaxShardSize = Annotated[
    str, typer.Option("--max-shard-size", help="Largest size of a weight file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]

_SHORT = {"method": "-m", "new_layers": "-n", "placement": "-p"}


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a subcommand an option for each field of its ``request``, with the field's docstring."""

    @wraps(command)
    def run(**values: Any) -> None:
        fields = {name: values.pop(name) for name in GrowRequest.model_fields}
        fields["options"] = _method_options(fields["options"] or [])
        command(**values, request=validate(GrowRequest, fields, "the request"))

    parameters: list[Parameter] = []
    for own in signature(command).parameters.values():
        parameters += map(_parameter, GrowRequest.model_fields) if own.name == "request" else [own]
    run.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _parameter(name: str) -> Parameter:
    """Make the option of one field of a request."""
    field = GrowRequest.model_fields[name]
    flags = [f"--{name.replace('_', '-')}", *([_SHORT[name]] if name in _SHORT else [])]
    kind, default, metavar = field.annotation, field.default, None
    if name == "new_layers":
        kind, metavar = str | None, "N|auto"
    elif name == "options":
        flags, kind, default, metavar = ["--set"], list[str] | None, None, "OPTION=VALUE"
    text = " ".join((field.description or "").split())
    option = typer.Option(*flags, help=text, metavar=metavar)
    place = Parameter.POSITIONAL_OR_KEYWORD
    return Parameter(name, place, default=default, annotation=Annotated[kind, option])


def _method_options(settings: list[str]) -> dict[str, str]:
    """Read ``--set option=value`` arguments."""
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise DeepenError(f"--set {setting!r} is not of the form option=value.")
        options[name.strip().replace("-", "_")] = value.strip()
    return options


def check_wish(push_to_hub: str | None, private: bool) -> None:
    """Refuse what could not be uploaded, before any work; without a wish, look at nothing.

    Raises:
        DeepenError: See ``check_push``; or only ``--private`` is given.
    """
    from deepen.growth.push import check_push

    if push_to_hub is not None:
        check_push(push_to_hub, private=private)
    elif private:
        raise DeepenError("--private says how to upload; give --push-to-hub REPO too.")


def fulfil_wish(push_to_hub: str | None, private: bool, folder: Path) -> None:
    """Upload what was made if that is asked for, and say where it is."""
    from deepen.growth.push import push

    if push_to_hub is not None:
        typer.echo(f"Pushed to {push(folder, push_to_hub, private=private)}", err=True)


def console() -> "Console":
    """Return the terminal, to which a name such as ``d[/x]`` is text and no markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def show(record: "BaseModel", as_json: bool, view: "Callable[[Any], RenderableType]") -> None:
    """Print a record, as JSON or as ``view`` lays it out for a person."""
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        console().print(view(record))
