"""What a study leaves in its folder, and how it is read back."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deepen.common.errors import DeepenError
from deepen.records.record import parse, read_record
from deepen.records.study import ArmRecord, StudySummary
from deepen.training.recipe import Stage

RECORDS, SUMMARY = "records.jsonl", "summary.json"
RATES: Mapping[Stage, str] = {"cpt": "rates.json", "sft": "fine-tuning-rates.json"}
"""Stage → file with what the search for its learning rates found."""

_RATES = TypeAdapter(dict[str, dict[str, float | None]])
_REMEDY = "give the study another output and run it again"


def read_records(folder: Path) -> list[ArmRecord]:
    """Read a study's records; none before the first arm has finished.

    Raises:
        DeepenError: A line is not what this version writes.
    """
    file = folder / RECORDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [parse(ArmRecord, line, file, _REMEDY) for line in lines]


def read_rates(folder: Path, stage: Stage = "cpt") -> dict[str, dict[str, float | None]]:
    """Read what a study's search for a stage's learning rates found: label → rate → loss.

    Raises:
        DeepenError: The file is damaged.
    """
    file = folder / RATES[stage]
    if not file.is_file():
        return {}
    try:
        return _RATES.validate_json(file.read_text(encoding="utf-8"))
    except ValidationError:
        raise DeepenError(
            f"{str(file)!r} is damaged; delete it, and rates are chosen anew."
        ) from None


def read_study(folder: Path) -> tuple[list[ArmRecord], StudySummary]:
    """Read a study's records, at least one, and its summary.

    Raises:
        DeepenError: They are missing, empty, or not what this version writes.
    """
    for name in (RECORDS, SUMMARY):
        if not (folder / name).is_file():
            raise DeepenError(
                f"{str(folder)!r} holds no {name}; give the output folder of a study that "
                f"`deepen compare` has begun."
            )
    records, file = read_records(folder), folder / SUMMARY
    if not records:
        raise DeepenError(f"{str(folder / RECORDS)!r} has no line yet; wait for the first arm.")
    return records, read_record(StudySummary, file, _REMEDY)
