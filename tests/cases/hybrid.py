"""Families whose blocks are of several kinds, and those without attention."""

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {}
