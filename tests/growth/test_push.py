"""Pushing to the hub, played by a server on this machine: what it is asked for and refuses."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

import deepen
import tiny
from deepen import cli
from deepen.common.errors import DeepenError
from deepen.growth.push import check_push, push


class Hub(ThreadingHTTPServer):
    """Plays the endpoints that one upload asks for; every file is small enough for the commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.token, self.role = "hf_right", "write"
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.broken = ""


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        repo_id = "/".join(name.split("/")[3:5])
        if name == "/api/whoami-v2":
            orgs, token = [{"name": "team"}], {"role": self.server.role}
            self.answer({"name": "me", "orgs": orgs, "auth": {"accessToken": token}})
        elif repo_id not in self.server.repositories:
            self.answer({"error": "Repository not found"}, 404, "RepoNotFound")
        elif "/tree/" in name:
            files = self.server.files
            self.answer([_listed(path, data) for path, data in files.items()])
        else:
            self.answer(
                {
                    "id": repo_id,
                    "private": self.server.repositories[repo_id],
                    "sha": "0" * 40,
                    "siblings": [{"rfilename": path} for path in self.server.files],
                }
            )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.partition("?")[0]
        if name == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hidden = asked.get("private") or asked.get("visibility") == "private"
            self.server.repositories.setdefault(repo_id, hidden)
            self.answer({"url": f"http://{self.headers['Host']}/{repo_id}", "name": repo_id})
        elif name == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in name:
            self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                }
            )
        else:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del self.server.files[value["path"]]
            url = f"http://{self.headers['Host']}/me/model/commit/{'1' * 40}"
            self.answer({"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def answer(self, body: Any, status: int = 200, code: str = "") -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            body, status = {"error": "Invalid credentials"}, 401
        elif self.server.broken and self.server.broken in self.path:
            body, status = {"error": "You have no room left"}, 403
        text = json.dumps(body).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _listed(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": "2" * 40}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Start a hub, and log in."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield server
        server.shutdown()
        thread.join()


def test_grow_pushes_what_it_has_written(
    hub: Hub, llama: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "grown"
    hub.files = {"model-00002-of-00002.safetensors": b"old", ".gitattributes": b"", "my.txt": b""}
    with pytest.raises(SystemExit) as end:
        cli.main(["grow", str(llama), str(out), "--push-to-hub", "me/grown", "--private"])
    assert not end.value.code
    order = [hub.asked.index(path) for path in ("GET /api/whoami-v2", "POST /api/repos/create")]
    assert order == sorted(order)
    assert hub.repositories == {"me/grown": True}
    # Weights of another model are gone, or loaders might read them; the rest of it is left.
    assert hub.files == tiny.read(out) | {".gitattributes": b"", "my.txt": b""}
    assert f"{constants.ENDPOINT}/me/grown" in capsys.readouterr().err


def test_a_name_of_ones_own_and_one_of_a_team(hub: Hub, llama: Path) -> None:
    for name, full in (("mine", "me/mine"), ("team/ours", "team/ours")):
        check_push(name)
        assert push(llama, name).endswith(f"/{full}")
        assert hub.repositories == {full: False}
        hub.repositories.clear()


def refused(*given: Any, **options: Any) -> str:
    with pytest.raises(DeepenError) as error:
        check_push(*given, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals_before_the_work(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no name on the hub" in refused("a/b/c")
    assert "cannot write to 'others'; it can to me, team" in refused("others/model")
    hub.repositories["me/open"] = False
    assert "is on the hub already, and public" in refused("me/open", private=True)
    check_push("me/open")
    hub.role = "read"
    assert "may only read" in refused("me/model")
    hub.token = "hf_other"
    assert "Invalid user token" in refused("me/model")
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token" in refused("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("me/model")
    assert {path.split()[0] for path in hub.asked} == {"GET"}


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "The hub does not answer as it should" in refused("me/model")


def test_nothing_is_grown_or_trained_for_a_bad_name(
    llama: Path, tmp_path: Path, capsys: Any
) -> None:
    for name, options in (("--bad", ["--push-to-hub=a/b/c"]), ("lonely", ["--private"])):
        with pytest.raises(SystemExit) as end:
            cli.main(["grow", str(llama), str(tmp_path / name), *options])
        assert end.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
        assert not (tmp_path / name).exists()


def test_what_the_hub_does_not_take_stays_here(hub: Hub, llama: Path) -> None:
    hub.broken = "/commit/"
    with pytest.raises(DeepenError) as error:
        push(llama, "me/model", private=True)
    said = str(error.value)
    assert "is whole, but the hub did not take it" in said
    assert f"`hf upload me/model {llama} . --private`" in said
    assert "\n" not in said


def test_the_card_says_what_the_hub_asks_for(llama: Path, tmp_path: Path) -> None:
    deepen.grow(llama, tmp_path / "grown", new_layers=2)
    data = ModelCard.load(tmp_path / "grown" / "README.md").data.to_dict()
    assert data["license"] == "mit"
    assert data["language"] == "en"
    assert data["library_name"] == "transformers"
    assert {"deepen", "depth-up-scaling", "opt-deus"} <= {*data["tags"]}
    # A folder has no name on the hub; what its own card says it was made from is passed on.
    assert "base_model" not in data
    assert "base_model_relation" not in data
    card = tmp_path / "grown" / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: mit\nbase_model: a/b"))
    deepen.grow(tmp_path / "grown", tmp_path / "twice", new_layers=1)
    data = ModelCard.load(tmp_path / "twice" / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("a/b", "finetune")
