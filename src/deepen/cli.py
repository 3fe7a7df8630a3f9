"""The command line: one subcommand per stage, each a few lines around the Python function.

Bad input ends with one sentence and exit code 2; a verification that fails, or a machine that does,
with exit code 1. torch and transformers are imported by the subcommands that need them.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from deepen.errors import DeepenError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Grow a pretrained language model deeper.",
)

Model = Annotated[str, typer.Argument(help="Checkpoint folder, or hub id.", show_default=False)]
MethodName = Annotated[
    str, typer.Option("--method", "-m", help="Growth method; `deepen methods` lists them.")
]
NewLayers = Annotated[
    int | None,
    typer.Option("--new-layers", "-n", help="Number of new blocks. [default: half of the base's]"),
]
PlacementName = Annotated[
    str | None,
    typer.Option(
        "--placement",
        "-p",
        help="top, middle, bottom, top-bottom, uniform or after:3,4,5. [default: the method's own]",
    ),
]
PerGap = Annotated[int, typer.Option("--per-gap", help="How many new blocks a gap may take.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTION=VALUE", help="One of the method's own options."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu, cuda, cuda:1.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Hub branch, tag or commit.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]


def _options(settings: list[str] | None) -> dict[str, object]:
    """Read ``--set option=value`` arguments."""
    options: dict[str, object] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise DeepenError(f"--set {setting!r} is not of the form option=value.")
        options[name.strip().replace("-", "_")] = value.strip()
    return options


@app.command()
def plan(
    model: Model,
    method: MethodName = "opt-deus",
    new_layers: NewLayers = None,
    placement: PlacementName = None,
    per_gap: PerGap = 1,
    settings: Set = None,
    seed: Seed = 0,
    device: Device = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show what grow would do; nothing is written."""
    from rich.console import Console

    from deepen import growth, printing

    record = growth.plan(
        model,
        revision=revision,
        method=method,
        new_layers=new_layers,
        placement=placement,
        per_gap=per_gap,
        options=_options(settings),
        seed=seed,
        device=device,
    )
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        Console().print(printing.growth(record))


@app.command()
def grow(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    method: MethodName = "opt-deus",
    new_layers: NewLayers = None,
    placement: PlacementName = None,
    per_gap: PerGap = 1,
    settings: Set = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Largest size of a weight file.")
    ] = "5GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint at OUT.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run.")] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Grow a checkpoint into a deeper one."""
    from rich.console import Console

    from deepen import growth, printing

    with printing.progress_bar() as progress:
        record = growth.grow(
            model,
            out,
            revision=revision,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            method=method,
            new_layers=new_layers,
            placement=placement,
            per_gap=per_gap,
            options=_options(settings),
            seed=seed,
            device=device,
        )
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        Console().print(printing.growth(record))


@app.command()
def verify(
    base: Annotated[str, typer.Argument(help="The checkpoint that was grown.", show_default=False)],
    grown: Annotated[Path, typer.Argument(help="The grown checkpoint.", show_default=False)],
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to run both on. [default: a built-in one]")
    ] = None,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="Token sequences.")] = 4,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens in each.")] = 64,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Prove that a grown checkpoint is what it claims; exit code 1 if it is not."""
    from rich.console import Console

    from deepen import printing, verification

    with printing.progress_bar() as progress:
        record = verification.verify(
            base,
            grown,
            text=_read_text(text),
            sequences=sequences,
            length=length,
            device=device,
            progress=progress,
        )
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        Console().print(printing.verification(record))
    if not record.passed:
        raise typer.Exit(1)


def _read_text(file: Path | None) -> str | None:
    """Read the text to verify with."""
    try:
        return file.read_text(encoding="utf-8") if file else None
    except (OSError, UnicodeDecodeError) as error:
        raise DeepenError(f"The text {str(file)!r} cannot be read ({error}).") from None


@app.command()
def inspect(model: Model, revision: Revision = None, as_json: Json = False) -> None:
    """Show a checkpoint's blocks, their lineage, and what is new."""
    from rich.console import Console

    from deepen import inspection, printing

    record = inspection.inspect(model, revision=revision)
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        Console().print(printing.inspection(record))


@app.command()
def methods(as_json: Json = False) -> None:
    """List the growth methods and their options."""
    from rich.console import Console

    from deepen import methods as table
    from deepen import printing

    known = [table.get(name) for name in table.names()]
    if as_json:
        schemas = {method.name: method.options.model_json_schema() for method in known}
        typer.echo(json.dumps(schemas, indent=2))
    else:
        Console().print(printing.method_table(known))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to keep the models.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A miniature, in seconds.")] = False,
) -> None:
    """Train a small base on this machine's own Python sources, grow it by every method, compare."""
    from deepen.demo.run import demo as run

    run(folder, quick=quick)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the console script's entry point.

    Args:
        arguments: Instead of ``sys.argv[1:]``.
    """
    try:
        app(args=arguments)
    except DeepenError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error}. What `grow` has finished is kept; --resume continues it.", 1)


def _fail(sentence: str, code: int) -> None:
    """Print one sentence to stderr and exit."""
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(sentence, err=True)
    sys.exit(code)
