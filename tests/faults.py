"""What tests of faults share: processes that may die, and counts for docs/reliability.md."""

import ctypes
import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from deepen.common.errors import DeepenError

Tally = Callable[[str, str], None]
"""Called with what was done and what was found."""
TABLE = Path(__file__).parents[1] / "docs" / "reliability.md"


def in_child(do: Callable[[], object]) -> int:
    """Run a function in a forked process; return its exit code, which is negative by a signal."""
    child = os.fork()
    if child == 0:
        try:
            do()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 0)
        except BaseException:  # the parent's test must not go on in the child
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def codes_of_two(do: Callable[[], object]) -> list[int]:
    """Run a function in two processes at once; return their exit codes, 2 for a DeepenError."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                do()
            except DeepenError:
                os._exit(2)
            except BaseException:
                os._exit(99)
            os._exit(0)
        children.append(child)
    return sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def tally_of(name: str) -> Iterator[Tally]:
    """Yield what counts; at the end the counts go where the docs have a place of that name."""
    rows: dict[str, Counter[str]] = {}
    yield lambda what, found: rows.setdefault(what, Counter()).update([found])
    if not os.environ.get("DEEPEN_TALLY"):
        return
    lines = ["| fault | times | found, and what the next run made of it |", "|---|---|---|"]
    for what, found in rows.items():
        told = ", ".join(f"{count} × {result}" for result, count in sorted(found.items()))
        lines.append(f"| {what} | {sum(found.values())} | {told} |")
    text = TABLE.read_text(encoding="utf-8")
    begin, end = f"<!-- faults: {name} -->\n", f"<!-- /faults: {name} -->"
    assert begin in text
    place = f"({re.escape(begin)}).*?({re.escape(end)})"
    table = "\n".join(lines) + "\n"
    made = re.sub(place, lambda m: m[1] + table + m[2], text, flags=re.DOTALL)
    TABLE.write_text(made, encoding="utf-8")


def give_up_rights() -> None:
    """Let what a folder forbids be forbidden to root too, in this process from here on."""
    version_3, all_of_none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version_3, all_of_none) == 0
