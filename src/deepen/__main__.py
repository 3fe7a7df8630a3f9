"""Run the command line as ``python -m deepen``."""

from deepen.cli import main

main()
