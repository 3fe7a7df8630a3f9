"""``deepen plan``, ``grow``, ``verify``, ``inspect`` and ``methods``."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from deepen.cli.options import (
    Device,
    Json,
    MethodName,
    Model,
    NewLayers,
    PerGap,
    PlacementName,
    Revision,
    Seed,
    Set,
)
from deepen.common.errors import DeepenError


def _options(settings: list[str] | None) -> dict[str, object]:
    """Read ``--set option=value`` arguments."""
    options: dict[str, object] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise DeepenError(f"--set {setting!r} is not of the form option=value.")
        options[name.strip().replace("-", "_")] = value.strip()
    return options


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
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", min=1, help="Tokens in a training sequence.")
    ] = None,
    sequences: Annotated[
        int, typer.Option("--sequences", min=1, help="Sequences in one forward pass.")
    ] = 1,
    precision: Annotated[
        Literal["bfloat16", "float32"], typer.Option("--precision", help="Arithmetic of training.")
    ] = "bfloat16",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations anew in training.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what grow would do and what training would cost; nothing is written."""
    from rich.console import Console

    from deepen.growth import preview as planning
    from deepen.report import terminal as printing

    record = planning.plan(
        model,
        revision=revision,
        sequence_length=sequence_length,
        sequences=sequences,
        precision=precision,
        activation_checkpointing=checkpointing,
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
        Console().print(printing.plan(record))


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

    from deepen.growth import grow as growth
    from deepen.report import terminal as printing

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

    from deepen.report import terminal as printing
    from deepen.verification import verify as verification

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


def inspect(
    model: Model,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Measure how well neighbouring blocks align.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="TEXT",
            help="The same, and compare what blocks compute on this text.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show a checkpoint's blocks, their lineage, and what is new."""
    from rich.console import Console

    from deepen.report import terminal as printing
    from deepen.verification import inspect as inspection

    with printing.progress_bar() as progress:
        record = inspection.inspect(
            model,
            revision=revision,
            alignment=alignment,
            calibration=calibration,
            device=device,
            progress=progress,
        )
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        Console().print(printing.inspection(record))


def methods(as_json: Json = False) -> None:
    """List the growth methods and their options."""
    from rich.console import Console

    from deepen import methods as table
    from deepen.report import terminal as printing

    known = [table.get(name) for name in table.names()]
    if as_json:
        schemas = {method.name: method.options.model_json_schema() for method in known}
        typer.echo(json.dumps(schemas, indent=2))
    else:
        Console().print(printing.method_table(known))
