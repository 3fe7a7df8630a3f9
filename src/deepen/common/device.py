"""Choose where to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepen.common.errors import DeepenError

if TYPE_CHECKING:
    import torch


def choose(name: str) -> torch.device:
    """Turn a device's name into a device that works here.

    Args:
        name: As torch writes it, or ``auto`` for a GPU if there is one and the CPU otherwise.

    Raises:
        DeepenError: There is no such device, or none of its memory is left.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which "meta" has not
    except torch.OutOfMemoryError:
        raise DeepenError(
            f"Device {name!r} has no memory left; end what runs on it, or try cpu."
        ) from None
    except (RuntimeError, AssertionError, ImportError):  # torch's, by kind of device
        raise DeepenError(f"Device {name!r} is not to be had here; try auto or cpu.") from None
    return device
