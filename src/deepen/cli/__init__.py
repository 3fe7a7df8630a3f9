"""The command line: one subcommand per stage, each a few lines around the Python function.

Bad input ends with one sentence and exit code 2; a verification that fails, or a machine that does,
with exit code 1. torch and transformers are imported by the subcommands that need them.
"""

import os
import sys

import typer

from deepen.cli import bases, growing, parts, training, widening
from deepen.common.errors import DeepenError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Grow a pretrained language model deeper.",
)
app.command()(bases.fetch)
app.command("import")(bases.import_gguf)
app.command()(growing.plan)
app.command()(growing.grow)
app.command()(widening.widen)
app.command()(growing.verify)
app.command()(growing.inspect)
app.command()(growing.methods)
app.command()(parts.pack)
app.command()(parts.attach)
app.command()(parts.shrink)
app.command()(parts.combine)
app.command()(parts.reproduce)
train = typer.Typer(no_args_is_help=True, help="Train the new blocks of a grown checkpoint.")
train.command()(training.cpt)
train.command()(training.sft)
app.add_typer(train, name="train")
app.command()(training.evaluate)
app.command()(training.compare)
app.command()(training.report)
app.command()(training.demo)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the console script's entry point.

    Args:
        arguments: Instead of ``sys.argv[1:]``.
    """
    # Before torch is loaded: threads that wait by spinning make small tensors many times slower on
    # cores that are shared with anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
