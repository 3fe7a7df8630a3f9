"""New blocks as parts: what a pack holds, what growing leaves of the base, what was assembled."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, computed_field

from deepen.common.files import leads_out
from deepen.records.growth import BaseIdentity
from deepen.records.record import Record
from deepen.records.verification import Check


def _inside(name: str) -> str:
    """Refuse a name that would be read or written elsewhere.

    Raises:
        ValueError: It is one.
    """
    if leads_out(name):
        raise ValueError(f"{name!r} is not the name of a file inside the folder")
    return name


def _writable(text: str) -> str:
    """Refuse a text that is no file's bytes.

    Raises:
        ValueError: It is one.
    """
    text.encode(errors="surrogateescape")
    return text


Inside = Annotated[str, AfterValidator(_inside)]
"""Path of a file inside a checkpoint's folder."""


class BaseFiles(Record):
    """What of the base's files a grown model does not hold: ``deepen-base.json`` beside it."""

    format: Literal[1] = 1
    """Version of this schema."""
    texts: dict[Inside, Annotated[str, AfterValidator(_writable)]]
    """Text files that growing writes anew, or not at all: config.json, the card, the index."""
    weights: dict[Inside, str]
    """Weight file → its safetensors header, which says where every tensor stands in it."""
    copied: dict[Inside, str]
    """File that came along → SHA-256 of it."""


class PackRecord(Record):
    """What a pack holds: ``pack.json``."""

    format: Literal[1] = 1
    """Version of this schema."""
    name: str
    """The grown checkpoint's name."""
    base: BaseIdentity
    """What the pack fits on."""
    plan: list[int | list[int | float]]
    """The stack, as one growth of the base."""
    new_blocks: list[int]
    """Its new blocks, as indices of the grown model."""
    changed: list[str] = Field(default_factory=list)
    """Tensors of the base that training may have changed; the pack holds them too."""
    weights: dict[Inside, str]
    """Weight file of the grown checkpoint → its safetensors header."""
    files: dict[Inside, str]
    """Every file of the grown checkpoint → SHA-256 of it."""
    from_base: list[Inside]
    """Files that are the base's own, and not in the pack."""
    tensors_sha256: str | None = None
    """SHA-256 of the file that holds the pack's tensors; earlier versions did not tell it."""
    weight_bytes: int
    """Size of the tensors in the pack."""
    grown_weight_bytes: int
    """Size of all tensors of the grown checkpoint."""


class AssemblyRecord(Record):
    """What ``attach``, ``shrink`` or ``combine`` wrote."""

    out: str
    """Folder of the checkpoint."""
    name: str
    """What it is, or is made of."""
    blocks: int
    """Its number of blocks."""
    new_blocks: list[int]
    """Those that the base does not have."""
    weight_bytes: int
    """Size of its tensors."""
    proof: str
    """What was compared before it got its name."""
    notes: list[str] = Field(default_factory=list)
    """What the user should know."""


class ReproduceRecord(Record):
    """What ``reproduce`` found."""

    grown: str
    """Name of the grown model."""
    base: BaseIdentity
    """What it was grown from."""
    method: str
    """How."""
    checks: list[Check]
    """What was made again and compared."""
    notes: list[str] = Field(default_factory=list)
    """Software that differs from what was recorded."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether all bytes agree."""
        return all(check.passed for check in self.checks)
