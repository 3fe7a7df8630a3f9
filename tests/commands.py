"""Subcommands as they are run in a terminal."""

from deepen import cli


def run(capsys, *arguments):
    """Run a subcommand; return exit code, stdout and stderr."""
    code = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err
