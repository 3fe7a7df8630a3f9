"""Choose where to compute."""

import torch

from deepen.errors import DeepenError


def choose(name: str) -> torch.device:
    """Turn a device's name into a device that works here.

    Args:
        name: As torch writes it, or ``auto`` for a GPU if there is one and the CPU otherwise.

    Raises:
        DeepenError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DeepenError(f"Device {name!r} cannot be used here ({reason}); try cpu.") from None
    return device
