"""The one exception for mistakes of the user, and the spelling help that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class DeepenError(Exception):
    """Bad input: the message is one sentence that names what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class DivergedError(DeepenError):
    """A loss or a gradient is no number: training went wrong, not what it was asked to do."""


class Interrupted(BaseException):
    """A signal asks the process to end: SIGINT, which is Ctrl-C, or SIGTERM.

    What is on its way out says what becomes of it by ``add_note``, as for an OSError: a clause such
    as "nothing was written", which the command line puts behind the sentence.
    """

    def __init__(self, signal: int) -> None:
        """Keep the signal's number."""
        super().__init__(signal)
        self.signal = signal


def unknown(kind: str, given: str, known: Iterable[str]) -> DeepenError:
    """Make the error for a name that is not in a table.

    Args:
        kind: What is named, for example ``"method"``.
        given: The name as the user wrote it.
        known: The valid names.

    Returns:
        An error that names the nearest valid name, or all of them if none is near.
    """
    names = list(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(names)}."
    return DeepenError(f"Unknown {kind} {given!r}; {hint}")
