"""Grown along a pattern of block types or against it: config.json, record and card say which."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import deepen
import shrink
import tiny
from deepen.common.errors import DeepenError
from deepen.planning.pattern import BROKEN_PATTERN

PERIOD = "_sliding_window_pattern"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 of two periods of six blocks; read only."""
    folder = tmp_path_factory.mktemp("bases") / "gemma"
    shrink.model("gemma3_text", num_hidden_layers=12).to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def config_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "config.json").read_text())
    return content


def made_anew(folder: Path, out: Path) -> torch.Tensor:
    """Return the logits of a runtime that makes the pattern anew from the period."""
    config = config_of(folder)
    del config["layer_types"]
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    settings = AutoConfig.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(folder, config=settings, dtype=torch.float32)
    logits: torch.Tensor = model(tiny.tokens(folder, 48)).logits
    return logits


def test_along_the_pattern_every_runtime_computes_the_same(gemma: Path, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    record = deepen.grow(gemma, out, placement="periods", method="avg-deus")
    assert record.depth == 18
    assert record.keeps_pattern is True
    assert record.notes == []
    assert config_of(out)[PERIOD] == 6
    assert BROKEN_PATTERN not in (out / "README.md").read_text()
    assert deepen.verify(gemma, out).passed
    lists = tiny.load(out)(tiny.tokens(out, 48)).logits
    assert torch.equal(made_anew(out, tmp_path / "anew"), lists)


def test_against_it_the_period_goes_and_a_sentence_says_so(gemma: Path, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    record = deepen.grow(gemma, out, placement="after:2,3,4", method="avg-deus")
    assert record.keeps_pattern is False
    assert record.notes == [BROKEN_PATTERN]
    assert deepen.plan(gemma, placement="after:2,3,4").growth.notes[0] == BROKEN_PATTERN
    assert PERIOD not in config_of(out)
    assert BROKEN_PATTERN in (out / "README.md").read_text()
    assert deepen.verify(gemma, out).passed
    lists = tiny.load(out)(tiny.tokens(out, 48)).logits
    assert not torch.allclose(made_anew(out, tmp_path / "anew"), lists, atol=1e-3)
    # Earlier versions kept the base's period, and wrote no manifest.
    (out / "deepen-manifest.json").unlink()
    for period, passes in ((6, True), (7, False)):
        (out / "config.json").write_text(json.dumps(config_of(out) | {PERIOD: period}))
        record = deepen.verify(gemma, out, sequences=1, length=8)
        assert record.passed is passes
        (check,) = (check for check in record.checks if check.name.startswith("config.json"))
        assert PERIOD in check.detail


def test_a_mistral_that_lists_types_is_grown_as_transformers_reads_it(tmp_path: Path) -> None:
    base, out = tiny.save(tmp_path / "base", "mistral"), tmp_path / "grown"
    types = ["full_attention", "sliding_attention"] * 3
    (base / "config.json").write_text(json.dumps(config_of(base) | {"layer_types": types}))
    deepen.grow(base, out, method="llama-pro", new_layers=2)
    assert deepen.verify(base, out).max_abs_logit_difference == 0.0
    tokens = tiny.tokens(base)
    before, after = tiny.load(base), tiny.load(out)
    assert type(after) is type(before)
    assert type(after).__name__ == "MinistralForCausalLM"
    assert torch.equal(after(tokens).logits, before(tokens).logits)


def test_without_a_pattern_periods_are_refused(llama: Path, gemma: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="the base has none"):
        deepen.grow(llama, tmp_path / "grown", placement="periods")
    with pytest.raises(DeepenError, match="4 new layers are none; ask for 6"):
        deepen.plan(gemma, placement="periods", new_layers=4)
    assert deepen.plan(llama, new_layers=1).growth.notes[0].startswith("7 blocks do not divide")


def test_outputs_of_a_little_noise_move_the_function_a_little(llama: Path, tmp_path: Path) -> None:
    """So that no group that a quantiser looks at is all zeros."""
    how = {"options": {"output_noise": 1e-3}, "new_layers": 2, "seed": 3}
    record = deepen.grow(llama, tmp_path / "a", **how)
    assert not record.step.preserves_function
    deepen.grow(llama, tmp_path / "b", **how)
    assert tiny.read(tmp_path / "a") == tiny.read(tmp_path / "b")
    deepen.grow(llama, tmp_path / "c", **how | {"seed": 4})
    model, other = tiny.load(tmp_path / "a"), tiny.load(tmp_path / "c")
    for index in record.step.new_blocks:
        outputs = model.model.layers[index].mlp.down_proj.weight
        parent = model.model.layers[index - 1].mlp.down_proj.weight
        assert (outputs != 0).all()
        ratio = outputs.square().mean().sqrt() / parent.square().mean().sqrt()
        assert 0.9e-3 < ratio.item() < 1.1e-3
        assert not torch.equal(outputs, other.model.layers[index].mlp.down_proj.weight)
    found = deepen.verify(llama, tmp_path / "a")
    assert found.passed
    assert found.max_abs_logit_difference is not None
    assert 0 < found.max_abs_logit_difference < 0.1
    assert "**Train it before" not in (tmp_path / "a" / "README.md").read_text()
    deepen.grow(llama, tmp_path / "silent", new_layers=2)
    assert "**Train it before" in (tmp_path / "silent" / "README.md").read_text()
    with pytest.raises(DeepenError, match="output_noise belongs to output_scale=0"):
        deepen.plan(llama, options={"output_noise": 1e-3, "output_scale": 1})
