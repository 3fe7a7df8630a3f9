"""Nothing that lies in a folder runs, and nothing of the environment gets out."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

import studies
import tiny
from deepen import cli
from deepen.base.text import PASSAGE

SENTINEL = "hf_" + "aSentinelThatNobodyElseHas" * 2


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):  # noqa: D105
        return Path.touch, (self.file,)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run a subcommand; return exit code, stdout and stderr."""
    code = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def trapped(llama, tmp_path, monkeypatch):
    """A folder to put traps into; afterwards none must have gone off, and nobody been asked."""
    folder, sprung = Path(shutil.copytree(llama, tmp_path / "base")), tmp_path / "sprung"
    monkeypatch.setattr("builtins.input", lambda *_: sprung.touch() or "y")
    yield folder, sprung
    assert not sprung.exists()


def edit(file: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def commands(base: Path, out: Path) -> list[list[object]]:
    """Return every command that opens a model, on a folder."""
    return [
        ["plan", base],
        ["grow", base, out],
        ["verify", base, base],
        ["inspect", base],
        ["evaluate", base, "--perplexity", base / "LICENSE"],
    ]


def test_no_code_of_a_pickle_runs(capsys, trapped, tmp_path):
    folder, sprung = trapped
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Trap(sprung)}, folder / "pytorch_model.bin")
    for command in commands(folder, tmp_path / "out"):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert "holds more than weights" in err
        assert "weights_only" not in err  # torch's own words end with how to run it


def test_no_character_of_a_file_moves_the_cursor(capsys, llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    for evil in ("\\u001b", "\\u202e", "\\u2028", "\\u0007"):
        spoilt = content.replace(b'"dtype":"BF16"', f'"dtype":"{evil}"'.encode(), 1)
        length = int.from_bytes(content[:8], "little") + len(spoilt) - len(content)
        weights.write_bytes(length.to_bytes(8, "little") + spoilt[8:])
        code, _, err = run(capsys, "plan", base)
        assert code == 2
        assert "unknown variant" in err
        assert err.removesuffix("\n").isprintable()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "9" * 50_000}))
    code, _, err = run(capsys, "plan", base)
    assert code == 2
    assert len(err) < 5000
    assert err.endswith(".\n")


def test_no_code_beside_a_model_runs(capsys, trapped, tmp_path):
    folder, sprung = trapped
    code = f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py"):
        (folder / name).write_text(code)
    classes = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    edit(folder / "config.json", model_type="own", auto_map=classes)
    tokenizer = {"AutoTokenizer": ["tokenization_own.T", None]}
    edit(folder / "tokenizer_config.json", tokenizer_class="T", auto_map=tokenizer)
    for command in commands(folder, tmp_path / "out"):
        assert run(capsys, *command)[0] == 2
    edit(folder / "config.json", model_type="llama")
    assert run(capsys, "grow", folder, tmp_path / "out", "--method", "llama-pro")[0] == 0
    assert run(capsys, "verify", folder, tmp_path / "out", "--length", 8)[0] == 0
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize(
    "way",
    [
        "{{{{ cycler.__init__.__globals__.os.system('touch {file}') }}}}",
        "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
        "{{% set _ = messages.append('{file}') %}}{{{{ messages }}}}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(capsys, trapped, tmp_path, way):
    folder, sprung = trapped
    (folder / "chat_template.jinja").write_text(way.format(file=sprung))
    rows = tmp_path / "rows.jsonl"
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text(json.dumps({"messages": said}) + "\n")
    code, _, err = run(capsys, "evaluate", folder, "--perplexity", rows)
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_no_token_gets_out_and_modes_follow_the_umask(capsys, llama, tmp_path, monkeypatch):
    """Every file and every word of growing, training, verifying, packing and reporting."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "ANY_PASSWORD"):
        monkeypatch.setenv(name, SENTINEL)
    base, made = Path(shutil.copytree(llama, tmp_path / "base")), tmp_path / "made"
    (base / "LICENSE").chmod(0o600)
    (tmp_path / "text.txt").write_text(PASSAGE, encoding="utf-8")
    recipe = {
        "model": str(made / "grown"),
        "data": {"path": str(tmp_path / "text.txt"), "sequence_length": 16},
        "training": {
            "max_steps": 2,
            "batch_size": 2,
            "learning_rate": 1e-2,
            "report_to": "none",
        },
        "output": str(made / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    studies.write(made / "study", *studies.study(seeds=(0,)))
    before = os.umask(0o027)
    try:
        said = [
            run(capsys, *command)
            for command in (
                ["grow", base, made / "grown", "--new-layers", 1],
                ["train", "cpt", tmp_path / "recipe.yaml"],
                ["verify", base, made / "run/model", "--length", 8, "--json"],
                ["pack", made / "run/model", made / "pack"],
                ["report", made / "study"],
            )
        ]
    finally:
        os.umask(before)
    assert [code for code, *_ in said] == [0] * len(said), said
    written = tiny.read(made)
    assert any(name.endswith(".html") for name in written)
    assert SENTINEL not in "".join(out + err for _, out, err in said)
    assert not [name for name, content in written.items() if SENTINEL.encode() in content]
    modes = {
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
        for folder in ("grown", "run/model", "pack")
        for path in [made / folder, *(made / folder).rglob("*")]
    }
    assert modes == {(True, 0o750), (False, 0o640)}
