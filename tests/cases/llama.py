"""Pre-norm families with gated FFNs."""

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {}
