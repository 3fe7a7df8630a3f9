"""The tokenizer of a checkpoint, or one sentence about why there is none."""

import json
import shutil
from pathlib import Path

import pytest

import tiny
from deepen.base.checkpoint import ModuleSource
from deepen.base.hub import open_checkpoint
from deepen.base.model import as_model, open_model
from deepen.base.text import PASSAGE, opening, tokenizer_of
from deepen.common.errors import DeepenError


def test_a_model_reads_text_with_the_tokenizer_beside_it(llama: Path) -> None:
    ids = open_model(llama).tokenizer()(PASSAGE)["input_ids"]
    assert ids == tiny.tokenizer()(PASSAGE)["input_ids"]


@pytest.mark.parametrize("content", [None, "{", '{"model": 3}', "[]"])
def test_a_tokenizer_that_is_missing_or_damaged_is_one_sentence(
    llama: Path, tmp_path: Path, content: str | None
) -> None:
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    if content is not None:
        (bare / "tokenizer.json").write_text(content)
    with pytest.raises(DeepenError, match=r"^bare has no tokenizer that loads \(.*\); copy .*\.$"):
        tokenizer_of(open_checkpoint(bare))


def test_special_tokens_alone_are_no_tokenizer(tmp_path: Path) -> None:
    bare = tiny.save(tmp_path / "bare", "qwen2")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert json.loads((bare / "config.json").read_text())["model_type"] == "qwen2"
    with pytest.raises(DeepenError, match="without words"):
        tokenizer_of(open_checkpoint(bare))


@pytest.mark.parametrize(
    ("template", "count"),
    [("$A", 0), ("<eos> $A", 1), ("<eos> <eos> $A <eos>", 2), ("$A <eos>", 0)],
)
def test_what_stands_in_front_of_a_text_is_its_opening(template: str, count: int) -> None:
    tokenizer = tiny.tokenizer(template)
    assert opening(tokenizer) == [tokenizer.eos_token_id] * count


def test_a_live_module_has_none() -> None:
    module = tiny.model()
    with pytest.raises(DeepenError, match=r"is a live module without a tokenizer"):
        as_model(ModuleSource(module, module.config.to_dict())).tokenizer()
