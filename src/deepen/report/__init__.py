"""Turn a study's records into a page and into Markdown; nothing else is read, nothing computed."""

from pathlib import Path

from deepen.common.files import write_whole
from deepen.comparison.results import read_study

PAGE, MARKDOWN = "report.html", "report.md"


def report(folder: str | Path) -> Path:
    """Write a study's report: ``report.html``, one file that needs no network, and ``report.md``.

    It can be called while the study is under way: what is not there yet is named. The same records
    give the same bytes.

    Args:
        folder: The study's output folder, with ``records.jsonl`` and ``summary.json``.

    Returns:
        Where the page lies.

    Raises:
        DeepenError: The folder holds no records, or records of another version.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    from deepen.report import tables
    from deepen.report.page import context

    folder = Path(folder)
    records, summary = read_study(folder)
    environment = Environment(
        loader=PackageLoader("deepen.report", "templates"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = tables.markdown
    environment.filters["plain"] = tables.plain
    environment.filters["px"] = lambda place: f"{place:.1f}"
    environment.filters["pct"] = lambda place: f"{place:.2f}%"
    shown = context(records, summary)
    for name in (PAGE, MARKDOWN):
        text = environment.get_template(f"{name.replace('report', 'template')}.jinja").render(shown)
        write_whole(folder / name, text)
    return folder / PAGE
