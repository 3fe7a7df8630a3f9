"""What lies beside the weights: what comes along, and what is told of the rest."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import deepen
import tiny
from deepen.base.checkpoint import FolderSource
from deepen.base.memory import load_pretrained
from deepen.base.model import open_model
from deepen.common.errors import DeepenError
from deepen.growth.card import inherited_from
from deepen.growth.side_files import copy_side_files, left_behind

SOURCES = sorted((Path(deepen.__file__).parent).rglob("*.py"))


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.fixture
def custom(copy, tmp_path, monkeypatch):
    """A checkpoint whose tokenizer is code of its own, and a trap for who asks or runs it."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit"
    (copy / "tokenization_own.py").write_text(code)
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "OwnTokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
            }
        )
    )

    def asked(*_: object) -> str:
        (tmp_path / "asked").touch()
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    yield copy
    assert not (tmp_path / "asked").exists(), "the user was asked to run code"
    assert not (tmp_path / "ran").exists(), "code ran"


def test_custom_tokenizer_code_is_never_run_or_asked_for(custom, tmp_path):
    record = deepen.grow(custom, tmp_path / "grown", method="llama-pro", new_layers=1)
    assert record.notes == [
        "The tokenizer of copy names custom code (tokenization_own.OwnTokenizer), which was "
        "neither run nor copied: the grown tokenizer does not load without it; if you trust it, "
        "copy tokenization_own.py beside the grown model and pass trust_remote_code=True."
    ]
    assert not list((tmp_path / "grown").glob("*.py"))
    verified = deepen.verify(custom, tmp_path / "grown")
    assert verified.passed
    assert "random tokens" in verified.checks[-1].detail
    for command in (
        lambda: open_model(tmp_path / "grown").tokenizer(),
        lambda: deepen.evaluate(custom, perplexity=[custom / "LICENSE"]),
    ):
        with pytest.raises(DeepenError, match=r"is custom code .* which deepen never runs"):
            command()


def test_a_tokenizer_that_loads_without_its_code_says_so(custom, llama):
    shutil.copy(llama / "tokenizer.json", custom)
    config = json.loads((custom / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (custom / "tokenizer_config.json").write_text(json.dumps(config))
    (note,) = left_behind(FolderSource(custom))
    assert "transformers has a class of its own for it" in note
    expected = AutoTokenizer.from_pretrained(llama).get_vocab()
    assert open_model(custom).tokenizer().get_vocab() == expected


def test_code_of_another_repository_is_named(custom):
    config = {"auto_map": {"AutoTokenizer": ["owner/repo--own.Own", None]}}
    (custom / "tokenizer_config.json").write_text(json.dumps(config))
    (note,) = left_behind(FolderSource(custom))
    assert "it lies at owner/repo" in note


def test_no_call_leaves_it_to_transformers_whether_code_runs():
    """Every call of an Auto class says no; without a word transformers asks on the terminal."""
    found = 0
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not ast.unparse(node.func.value).startswith("Auto"):
                continue
            if node.func.attr not in ("from_pretrained", "from_config"):
                continue
            found += 1
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert given.get("trust_remote_code") == "False", f"{file.name}:{node.lineno}"
    assert found >= 4


def test_an_adapter_beside_the_model_stays_behind_and_is_told(copy, tmp_path):
    pytest.importorskip("peft")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 2}
    (copy / "adapter_config.json").write_text(json.dumps(adapter))
    for name in ("adapter_model.safetensors", "model.safetensors.index.fp16.json"):
        (copy / name).write_text("{}")
    record = deepen.grow(copy, tmp_path / "grown", method="llama-pro", new_layers=1)
    assert "holds an adapter beside the model" in " ".join(record.notes)
    assert not list((tmp_path / "grown").glob("adapter*"))
    assert not list((tmp_path / "grown").glob("*index*"))
    assert tiny.load(tmp_path / "grown").config.num_hidden_layers == 7
    with pytest.raises(DeepenError, match=r"merge it, or remove adapter_config.json"):
        load_pretrained(FolderSource(copy), torch.float32)


def test_everything_else_is_copied_as_it_is(copy, tmp_path):
    (copy / "weird.json").write_text("{}")
    (tmp_path / "out").mkdir()
    copy_side_files(copy, tmp_path / "out")
    assert (tmp_path / "out/weird.json").read_bytes() == b"{}"
    assert (tmp_path / "out/tokenizer.json").exists()
    assert not (tmp_path / "out/model.safetensors").exists()


def test_links_out_of_the_folder_are_told_and_not_followed(copy, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine alone")
    templates = copy / "additional_chat_templates"
    templates.mkdir()
    (templates / "own.jinja").write_text("own")
    for link in (copy / "LICENSE", copy / "README.md", templates / "other.jinja"):
        link.unlink(missing_ok=True)
        link.symlink_to(secret)
    record = deepen.grow(copy, tmp_path / "grown", method="llama-pro", new_layers=1)
    assert record.notes == [
        "LICENSE, README.md of copy are links that lead out of its folder, and do not come along; "
        "copy the files there if they belong to the model."
    ]
    assert not (tmp_path / "grown/LICENSE").exists()
    assert [f.name for f in (tmp_path / "grown" / templates.name).iterdir()] == ["own.jinja"]
    assert not any(b"mine alone" in file.read_bytes() for file in files_of(tmp_path / "grown"))


def files_of(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


FRONTS = {
    "unclosed list": b"---\nlicense: [mit\n---\n# Tiny\n",
    "no mapping": b"---\n- mit\n---\n# Tiny\n",
    "no date": b"---\nlicense: 2001-99-99\n---\n# Tiny\n",
    "an object": b"---\nlicense: !!python/object:os.system x\n---\n# Tiny\n",
    "tags no list": b"---\nlicense: mit\ntags: 5\n---\n# Tiny\n",
}


@pytest.mark.parametrize("front", FRONTS)
def test_a_card_that_cannot_be_read_is_told_of(copy, front):
    (copy / "README.md").write_bytes(FRONTS[front])
    (note,) = left_behind(FolderSource(copy))
    assert note.startswith("The front matter of copy's card (README.md) cannot be read (")
    assert "\n" not in note
    assert inherited_from(copy) == {}


def test_of_a_card_words_alone_are_inherited(copy):
    words = "---\nlicense: {a: b}\nlanguage: [en, de]\nlicense_name: 5\n---\n"
    (copy / "README.md").write_bytes(words.encode() + b"caf\xe9\n")
    assert left_behind(FolderSource(copy)) == []
    assert inherited_from(copy) == {"language": ["en", "de"]}


BROKEN = {
    "README.md": FRONTS["unclosed list"],
    "generation_config.json": b"null",
    "special_tokens_map.json": b"null",
    "tokenizer.json": b"{",
}


def test_what_cannot_be_read_comes_along_with_a_note(copy, tmp_path):
    for name, content in BROKEN.items():
        (copy / name).write_bytes(content)
    record = deepen.grow(copy, tmp_path / "grown", method="llama-pro", new_layers=1)
    card, generation, tokenizer = record.notes
    assert "README.md" in card
    assert generation.startswith("generation_config.json of copy cannot be read (")
    assert tokenizer.startswith("copy has no tokenizer that loads (")
    for name in BROKEN.keys() - {"README.md"}:
        assert (tmp_path / "grown" / name).read_bytes() == BROKEN[name]
    assert "license" not in ModelCard.load(tmp_path / "grown/README.md").data.to_dict()
    assert deepen.verify(copy, tmp_path / "grown").passed
    with pytest.raises(DeepenError, match="cannot load grown"):
        load_pretrained(FolderSource(tmp_path / "grown"), torch.float32)
