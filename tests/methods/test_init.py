"""The table of methods, and a stranger's method through an entry point."""

from pathlib import Path

import pytest

import deepen
from deepen import cli, methods
from deepen.common.errors import DeepenError

DOCS = Path(__file__).parents[2] / "docs/methods.md"


def test_the_method_of_the_docs_works_everywhere(install, llama, tmp_path):
    text = DOCS.read_text(encoding="utf-8").split("## A method of your own")[1]
    toml = text.split("```toml\n")[1].split("```")[0].replace('"', "")
    shown = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in shown.splitlines() if line]) <= 30
    install("copy_above", shown, toml.replace("project.entry-points.", ""))
    assert methods.names()[-1] == "copy-above"
    assert methods.is_method("copy-above")
    record = deepen.grow(llama, tmp_path / "grown", method="copy-above", options={"scale": "2"})
    assert record.step.options["scale"] == 2.0
    assert record.step.preserves_function
    assert deepen.verify(llama, tmp_path / "grown").max_abs_logit_difference == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("METHOD = 1 / 0", "ZeroDivisionError: division by zero"),
        ("", "AttributeError: module 'my_package.broken' has no attribute 'METHOD'"),
        ("METHOD = 'broken'", "is a str"),
    ],
)
def test_a_package_that_cannot_be_used_is_one_sentence(install, capsys, text, reason):
    install("broken", text, "[deepen.methods]\nbroken = my_package.broken:METHOD\n")
    with pytest.raises(DeepenError) as refused:
        methods.get("broken")
    sentence = str(refused.value)
    assert sentence.startswith("Method 'broken' ")
    assert reason in sentence
    assert "\n" not in sentence
    assert methods.get("solar").name == "solar"
    with pytest.raises(SystemExit) as ended:
        cli.main(["methods"])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(DeepenError, match="did you mean 'llama-pro'"):
        methods.get("llama-por")
    with pytest.raises(DeepenError, match="choose one of: opt-deus, avg-deus, solar"):
        methods.get("?")
    assert [methods.is_method(name) for name in ("solar", "?")] == [True, False]
