"""The survey behind docs/architectures.md: nothing is ever silently wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from deepen import methods
from deepen.base.anatomy import FAMILIES, REFUSED

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")


def test_the_page_is_of_these_tables():
    for model_type in (*FAMILIES, *REFUSED):
        assert f"`{model_type}`" in PAGE, "run make survey"
    assert "**" in PAGE
    assert "0 wrong**" in PAGE
    assert not set(FAMILIES) & set(REFUSED)
    assert all(f"| `{name}` |" in PAGE for name in methods.names())


@pytest.mark.slow
def test_every_family_is_right_or_refused_with_every_method():
    command = [sys.executable, str(ROOT / "scripts" / "survey.py"), "--jobs", "1"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "0 wrong**" in told, told
