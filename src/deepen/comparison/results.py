"""What a study leaves in its folder, and how it is read back."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deepen.common.bounded import check_parts, read_text
from deepen.common.errors import DeepenError
from deepen.records.record import parse, read_record
from deepen.records.study import ArmRecord, Rates, StudySummary
from deepen.training.recipe import Stage

RECORDS, SUMMARY = "records.jsonl", "summary.json"
RATES: Mapping[Stage, str] = {"cpt": "rates.json", "sft": "fine-tuning-rates.json"}
"""Stage → file with what the search for its learning rates found."""

_RATES = TypeAdapter(Rates)
_REMEDY = "give the study another output and run it again"


def read_records(folder: Path) -> list[ArmRecord]:
    """Read a study's records; none before the first arm has finished.

    Raises:
        DeepenError: A line is not what this version writes, or an arm and seed stand there twice.
    """
    file = folder / RECORDS
    lines = read_text(file).split("\n") if file.is_file() else []
    records = [parse(ArmRecord, line, file, _REMEDY) for line in lines if line]
    for run, count in Counter((record.arm, record.seed) for record in records).items():
        if count > 1:
            raise DeepenError(
                f"{str(file)!r} has {count} lines of arm {run[0]!r} with seed {run[1]}; delete all "
                f"but one."
            )
    return records


def read_rates(folder: Path, stage: Stage = "cpt") -> dict[str, dict[str, float | None]]:
    """Read what a study's search for a stage's learning rates found: label → rate → loss.

    Raises:
        DeepenError: The file is damaged.
    """
    file = folder / RATES[stage]
    if not file.is_file():
        return {}
    text = read_text(file)
    check_parts(text, repr(str(file)))
    try:
        return _RATES.validate_json(text)
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
    summary = read_record(StudySummary, file, _REMEDY)
    if not any(record.arm in summary.arms and record.seed in summary.seeds for record in records):
        raise DeepenError(
            f"{str(file)!r} tells of no arm and seed that {str(folder / RECORDS)!r} has a line of; "
            f"bring both from one study."
        )
    return records, summary
