"""Families with a norm on the way out."""

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {}),
}
