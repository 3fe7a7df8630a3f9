"""Hub ids, without a network."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


class Answers(BaseHTTPRequestHandler):
    """Plays a hub on which every model holds two GGUF files and nothing else."""

    def log_message(self, *_):
        """Print nothing."""

    def do_GET(self):
        names = ("b.Q8_0.gguf", "a.Q4_0.gguf")
        tree = [{"type": "file", "path": n, "size": 9, "oid": "2" * 40} for n in names]
        about = {"id": "owner/gguf", "sha": "0" * 40, "siblings": [{"rfilename": n} for n in names]}
        body = json.dumps(tree if "/tree/" in self.path else about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_model_of_gguf_files_alone_is_refused_with_the_way_out(tmp_path, monkeypatch):
    constants = huggingface_hub.constants
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        try:
            with pytest.raises(DeepenError) as raised:
                open_checkpoint("owner/gguf")
        finally:
            server.shutdown()
            thread.join()
    assert str(raised.value) == (
        "'owner/gguf' holds GGUF weights alone (a.Q4_0.gguf); fetch that file, `hf download "
        "owner/gguf a.Q4_0.gguf --local-dir DIR`, write it as a checkpoint with `deepen import "
        "DIR/a.Q4_0.gguf OUT`, and give OUT."
    )


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
