"""What every alignment of two blocks asks of them."""

from dataclasses import fields
from typing import Any, ClassVar, Protocol

from torch import Tensor

from deepen.common.errors import DeepenError


class Parts(Protocol):
    """A dataclass of tensors and settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    """What makes it a dataclass."""


def require_alike(a: Parts, b: Parts, kind: str) -> None:
    """Refuse parts of two blocks that differ in shape or kind, or are not finite.

    Args:
        a: Lower block's dataclass of tensors and settings.
        b: Upper block's, of the same class.
        kind: What they are, for the message.

    Raises:
        DeepenError: Names the first field that is wrong.
    """
    for field in fields(a):
        one, other = (getattr(part, field.name) for part in (a, b))
        if getattr(one, "shape", one) != getattr(other, "shape", other):
            raise DeepenError(
                f"The {kind} of two blocks differ in {field.name}; align blocks of the same kind."
            )
        for value in (one, other):
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise DeepenError(
                    f"The {kind} have a {field.name} that is infinite or not a number somewhere; "
                    "repair the checkpoint before aligning."
                )
