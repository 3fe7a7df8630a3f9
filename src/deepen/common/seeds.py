"""Random numbers that depend on nothing but what they are for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def generator_for(what: str) -> torch.Generator:
    """Return a generator on the CPU, seeded by a text.

    Args:
        what: What the numbers are for, a seed among it; equal texts give equal numbers.
    """
    import torch

    digest = hashlib.sha256(what.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
