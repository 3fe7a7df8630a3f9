"""The table of methods, and a stranger's method through an entry point."""

import importlib
from pathlib import Path

import pytest

import deepen
from deepen import methods
from deepen.common.errors import DeepenError

DOCS = Path(__file__).parents[2] / "docs/methods.md"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the method that docs/methods.md shows, as a package of its own."""
    text = DOCS.read_text(encoding="utf-8").split("## A method of your own")[1]
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "copy_above.py").write_text(text.split("```python\n")[1].split("```")[0])
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    toml = text.split("```toml\n")[1].split("```")[0].replace('"', "")
    (metadata / "entry_points.txt").write_text(toml.replace("project.entry-points.", ""))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("installed")
def test_the_method_of_the_docs_works_everywhere(llama, tmp_path):
    assert methods.names()[-1] == "copy-above"
    record = deepen.grow(llama, tmp_path / "grown", method="copy-above", options={"scale": "2"})
    assert record.step.options == {"scale": 2.0}
    assert deepen.verify(llama, tmp_path / "grown").max_abs_logit_difference == 0.0


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(DeepenError, match="did you mean 'llama-pro'"):
        methods.get("llama-por")
    with pytest.raises(DeepenError, match="choose one of: opt-deus, avg-deus, solar"):
        methods.get("?")
