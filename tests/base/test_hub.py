"""Hub ids, without a network."""

import shutil

import huggingface_hub
import pytest

import deepen
from deepen.base.hub import open_checkpoint
from deepen.common.errors import DeepenError


def test_offline_and_not_cached_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeepenError, match="neither a folder here nor in the hub's cache") as raised:
        open_checkpoint("nobody/nothing")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("model", ["./nobody/nothing", "nothing", "a/b/c", "/nobody"])
def test_what_is_no_hub_id_is_a_missing_folder(model):
    with pytest.raises(DeepenError, match="There is no folder"):
        open_checkpoint(model)


def test_a_cached_model_is_known_by_its_id_and_commit(llama, tmp_path, monkeypatch):
    """The cache's own layout: models--owner--name/snapshots/COMMIT and refs/main."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "cache/models--owner--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    shutil.copytree(llama, repo / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    record = deepen.grow("owner/tiny", tmp_path / "grown")
    assert record.step.base.name == "owner/tiny"
    assert record.step.base.revision == commit
    card = (tmp_path / "grown/README.md").read_text()
    assert "base_model: owner/tiny" in card
    assert deepen.verify("owner/tiny", tmp_path / "grown").passed
