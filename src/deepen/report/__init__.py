"""Turn records into a page and into Markdown; nothing else is read, nothing computed."""

from pathlib import Path
from typing import Any

from deepen.common.files import write_whole
from deepen.comparison.results import read_study
from deepen.comparison.spans.record import SCAN, read_scan

PAGE, MARKDOWN = "report.html", "report.md"


def report(folder: str | Path) -> Path:
    """Write a report: ``report.html``, one file that needs no network, and ``report.md``.

    Of a study it can be called while that is under way: what is not there yet is named. The same
    records give the same bytes.

    Args:
        folder: A study's output folder, with ``records.jsonl`` and ``summary.json``, or a scan's,
            with ``scan.json``.

    Returns:
        Where the page lies.

    Raises:
        DeepenError: The folder holds no records, or records of another version.
    """
    folder = Path(folder)
    kind, shown = _shown(folder)
    environment = _environment()
    for name in (PAGE, MARKDOWN):
        template = environment.get_template(f"{name.replace('report', kind)}.jinja")
        write_whole(folder / name, template.render(shown))
    return folder / PAGE


def _shown(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the templates for what a folder holds, and what they show."""
    from deepen.report import page
    from deepen.report.spans import page as spans

    if (folder / SCAN).is_file():
        return "scan", spans.context(read_scan(folder))
    return "template", page.context(*read_study(folder))


def _environment() -> Any:  # noqa: ANN401 (a class of jinja2)
    """Return what renders templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    from deepen.report import tables

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
    return environment
