"""What all schemas of records share."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepen.common.bounded import check_parts, read_text
from deepen.common.errors import DeepenError

Count = Annotated[int, Field(ge=0, le=10**18)]
Positive = Annotated[int, Field(ge=1, le=10**18)]
Measure = Annotated[float, Field(ge=0, le=1e30)]
"""Seconds, FLOPs, rates and shares: finite, unlike losses, which may be anything."""


class Record(BaseModel):
    """Base of all records: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


RecordT = TypeVar("RecordT", bound=BaseModel)


def parse(schema: type[RecordT], text: str, file: Path, remedy: str) -> RecordT:
    """Read a record.

    Args:
        schema: What it is.
        text: JSON.
        file: Where it stands.
        remedy: What to do if it cannot be read.

    Raises:
        DeepenError: It is not what this version writes, or has too many parts.
    """
    check_parts(text, repr(str(file)))
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        reason = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise DeepenError(
            f"{str(file)!r} is damaged or of another version of deepen ({reason}); {remedy}."
        ) from None


def read_record(schema: type[RecordT], file: Path, remedy: str) -> RecordT:
    """Read the record that a file holds; see ``read_text`` and ``parse``."""
    return parse(schema, read_text(file), file, remedy)
