"""Families whose blocks are of several kinds, and those without attention."""

from deepen.anatomy.family import Family

FAMILIES: tuple[Family, ...] = ()

REFUSED: dict[str, str] = {}
