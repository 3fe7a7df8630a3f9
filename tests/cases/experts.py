"""Mixtures of experts."""

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {}),
}
