"""The survey behind docs/architectures.md: nothing is ever silently wrong."""

import runpy
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


def test_what_the_page_says_of_tables_is_what_they_say():
    survey = runpy.run_path(str(ROOT / "scripts" / "survey.py"))
    findings, heading = survey["recorded"](PAGE)
    assert {f.model_type for f in findings if f.verdicts} == set(FAMILIES)
    assert list(survey["tables"](findings, heading)) == survey["generated"](PAGE), (
        "run scripts/survey.py --tables"
    )


@pytest.mark.slow
def test_every_family_is_right_or_refused_with_every_method():
    command = [sys.executable, str(ROOT / "scripts" / "survey.py"), "--jobs", "1"]
    summary = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "0 wrong**" in summary, summary
