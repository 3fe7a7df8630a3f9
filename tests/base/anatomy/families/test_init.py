"""A stranger's architecture through an entry point, and packages that cannot be used."""

from pathlib import Path

import pytest
import torch

import deepen
import shrink
from deepen.base.anatomy import FAMILIES, family_named
from deepen.base.model import open_model
from deepen.common.errors import DeepenError

DOCS = Path(__file__).parents[4] / "docs/architectures.md"


@pytest.fixture
def registered():
    """Let transformers forget what a test registers."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    mappings = (CONFIG_MAPPING._extra_content, MODEL_FOR_CAUSAL_LM_MAPPING._extra_content)
    before = [dict(mapping) for mapping in mappings]
    yield
    for mapping, entries in zip(mappings, before, strict=True):
        mapping.clear()
        mapping.update(entries)


@pytest.mark.usefixtures("registered")
def test_the_architecture_of_the_docs_is_grown_and_verified(install, tmp_path):
    text = DOCS.read_text(encoding="utf-8").split("## An architecture of your own")[1]
    toml = text.split("```toml\n")[1].split("```")[0].replace('"', "")
    shown = text.split("```python\n")[1].split("```")[0]
    install("my_model", shown, toml.replace("project.entry-points.", ""))
    family = family_named("my_model")
    assert family is not None
    assert "my_model" not in FAMILIES
    shrink.model("my_model").save_pretrained(tmp_path / "base")
    record = deepen.grow(tmp_path / "base", tmp_path / "grown")
    assert len(record.proofs) == 3
    assert all(proof.aligned for proof in record.proofs)
    verified = deepen.verify(tmp_path / "base", tmp_path / "grown", sequences=1, length=16)
    assert verified.passed
    assert verified.max_abs_logit_difference == 0.0
    grown = open_model(tmp_path / "grown")
    assert (grown.family.model_type, grown.depth) == ("my_model", 9)
    own = open_model(tmp_path / "base").block(0, torch.device("cpu"))
    assert {"mlp.enter.weight", "mlp.leave.weight"} <= set(own)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("", "AttributeError: module 'my_package.my_model' has no attribute 'FAMILY'"),
        ("FAMILY = 'mine'", "is a str and no deepen.base.anatomy.family.Family"),
        (
            "from deepen.base.anatomy import FAMILIES\nFAMILY = FAMILIES['llama']",
            "names a table of model_type 'llama'",
        ),
    ],
)
def test_a_package_that_cannot_be_used_is_one_sentence(install, text, reason):
    install("my_model", text, "[deepen.families]\nmy_model = my_package.my_model:FAMILY\n")
    with pytest.raises(DeepenError) as refused:
        family_named("my_model")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert family_named("llama") is FAMILIES["llama"]
    assert family_named("no_model") is None
