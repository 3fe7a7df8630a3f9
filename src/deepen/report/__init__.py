"""Turn a study's records into a page and into Markdown; nothing else is read, nothing computed."""

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepen.common.errors import DeepenError
from deepen.records.study import ArmRecord, StudySummary

RECORDS, SUMMARY = "records.jsonl", "summary.json"
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
    records, summary = read(folder)
    environment = Environment(
        loader=PackageLoader("deepen.report", "templates"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = tables.markdown
    environment.filters["pct"] = lambda place: f"{place:.2f}%"
    shown = context(records, summary)
    for name in (PAGE, MARKDOWN):
        text = environment.get_template(f"{name.replace('report', 'template')}.jinja").render(shown)
        replace(folder / name, text)
    return folder / PAGE


def read(folder: Path) -> tuple[list[ArmRecord], StudySummary]:
    """Read a study's records.

    Raises:
        DeepenError: They are missing, empty, or not what this version writes.
    """
    for name in (RECORDS, SUMMARY):
        if not (folder / name).is_file():
            raise DeepenError(
                f"{str(folder)!r} holds no {name}; give the output folder of a study that "
                f"`deepen compare` has begun."
            )
    lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    records: list[ArmRecord] = [_parse(ArmRecord, line, RECORDS) for line in lines if line.strip()]
    if not records:
        raise DeepenError(f"{str(folder / RECORDS)!r} has no line yet; wait for the first arm.")
    text = (folder / SUMMARY).read_text(encoding="utf-8")
    return records, _parse(StudySummary, text, SUMMARY)


def _parse(schema: type[Any], text: str, name: str) -> Any:  # noqa: ANN401 (of the schema's type)
    """Read one record."""
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        raise DeepenError(
            f"{name} is damaged or of another version of deepen "
            f"({'.'.join(map(str, problem['loc']))}: {problem['msg']}); run the study again."
        ) from None


def replace(file: Path, text: str) -> None:
    """Write a file so that it is always whole: beside it first, then one rename."""
    beside = file.with_name(f".{file.name}.unfinished")
    with beside.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    beside.replace(file)
