"""``deepen fetch`` and ``import``."""

from pathlib import Path
from typing import Annotated

import typer

from deepen.cli.options import Out, Overwrite


def fetch(
    name: Annotated[str, typer.Argument(help="smollm2 or gemma3.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Write a pretrained model of the Python registry as a checkpoint, to be grown."""
    from deepen.base.registry.models import fetch as run

    written = run(name, out, overwrite=overwrite, tell=lambda said: typer.echo(said, err=True))
    typer.echo(written)


def import_gguf(
    file: Annotated[Path, typer.Argument(help="The GGUF file.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Write a GGUF file's model as a checkpoint in bfloat16, to be grown."""
    from deepen.base.gguf import import_gguf as run

    typer.echo(run(file, out, overwrite=overwrite))
