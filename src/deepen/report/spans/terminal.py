"""A scan as a person reads it in a terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from deepen.records.scan import ScanRecord
from deepen.report import text as written
from deepen.report.spans.page import best_table, facts_of
from deepen.report.terminal import columns, facts


def scanned(record: ScanRecord) -> Group:
    """Show what was scanned, the best spans, and the verdict."""
    shown: list[tuple[str, str | Text]] = [*facts_of(record)]
    shown.append(("took", f"{written.seconds(record.wall_seconds)}".replace("\u2009", " ")))
    parts: list[Table | Text] = [facts(shown), Text()]
    for table in best_table(record):
        view = columns(*table.header)
        for name, cells in table.rows:
            view.add_row(name, *(cell.text for cell in cells))
        parts += [view, Text()]
    style = {"helps": "bold green", "unproven": "bold yellow", "none": "bold"}[record.verdict]
    parts.append(Text(record.sentence, style))
    if record.verdict == "helps":
        parts.append(Text(record.command))
    return Group(*parts)
