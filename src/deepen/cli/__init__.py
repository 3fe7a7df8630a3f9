"""The command line: one subcommand per stage, each a few lines around the Python function.

Bad input ends with one sentence and exit code 2; a verification that fails, or a machine that does,
with exit code 1; a signal with one sentence and 128 + its number. torch and transformers are
imported by the subcommands that need them, and kept out of those that only look.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import typer
from typer.exceptions import TyperException

from deepen.base.registry import PREFIX
from deepen.cli import bases, growing, parts, scanning, training, widening
from deepen.common.errors import DeepenError, Interrupted
from deepen.common.quiet import keep_torch_out

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
app.command()(scanning.scan)
app.command()(training.report)
app.command()(training.demo)

_LONGEST = 4000
"""Characters of a sentence; more than those of the longest path are cut from its middle."""
_GO_ON = ("train", "compare", "demo")
"""Commands that go on by themselves when they are given again."""
_COMPUTING = ("--alignment", "--calibration", "--peft", PREFIX)
"""With these `inspect` measures, or builds a model, or writes one that a package holds."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the console script's entry point.

    Args:
        arguments: Instead of ``sys.argv[1:]``.
    """
    # Before torch is loaded: threads that wait by spinning make small tensors many times slower on
    # cores that are shared with anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None and _only_looks(given):  # in a process that does nothing else
        keep_torch_out()
    try:
        with _signals_raised():
            code = app(args=given, standalone_mode=False)
    except DeepenError as error:
        _fail(str(error), 2)
    except TyperException as error:
        if not error.format_message():  # no command was given, and the help is printed
            sys.exit(error.exit_code)
        _fail(*_misused(error))
    except OSError as error:
        where = f": {error.filename!r}" if error.filename is not None else ""
        said = " ".join((error.strerror or str(error)).split()).rstrip(".")
        # A name that no file system takes is no failure of this one.
        code = 2 if error.errno == errno.ENAMETOOLONG else 1
        _fail(f"{said}{where}; {_what_is_left(error, given)}.", code)
    except Interrupted as error:
        name = signal.Signals(error.signal).name
        _fail(f"Ended by {name}; {_what_is_left(error, given)}.", 128 + error.signal)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _only_looks(arguments: Sequence[str]) -> bool:
    """Whether a command reads what lies in a folder here and computes nothing of it."""
    asked = any(one.startswith(_COMPUTING) for one in arguments)
    return arguments[:1] == ["inspect"] and not asked


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Let SIGINT and SIGTERM end what is under way as an error does; a second one ends at once."""
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner and number == signal.SIGINT:  # a worker that was forked
            signal.default_int_handler(number, frame)
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        if os.getpid() != owner:
            os.kill(os.getpid(), number)
        raise Interrupted(number)

    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as in a shell's background jobs
    }
    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _what_is_left(error: BaseException, arguments: Sequence[str]) -> str:
    """Say what an error leaves behind, and how to go on."""
    if notes := getattr(error, "__notes__", None):
        return "; ".join(notes)
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command in _GO_ON:
        return "what is saved is kept, and the same command goes on from there"
    return "nothing is left half-written"


def _misused(error: TyperException) -> tuple[str, int]:
    """Say what is wrong with a command line."""
    said = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None or said.endswith("?"):
        return said, error.exit_code
    return f"{said}; see `{context.command_path} --help`.", error.exit_code


def _fail(sentence: str, code: int) -> None:
    """Print one sentence to stderr and exit.

    What a file holds may stand in it, by a library's words: no character of that moves the cursor,
    begins a line or stops the printing, and a name of megabytes is not shown whole.
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    if len(shown) > _LONGEST:
        shown = f"{shown[: _LONGEST // 2]} … {shown[-_LONGEST // 2 :]}"
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(shown, err=True)
    sys.exit(code)
