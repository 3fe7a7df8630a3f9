"""Every family: grown models compute what their base computes, and stay what they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import deepen
import shrink
from cases import CASES
from deepen.anatomy import FAMILIES
from deepen.base import open_base
from deepen.plans import Plan

IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
METHODS = ("opt-deus", "llama-pro")


@pytest.fixture(scope="module", params=list(CASES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each family in turn, in float32, as transformers saves it."""
    folder = tmp_path_factory.mktemp("families") / request.param
    model_type, settings = CASES[request.param]
    shrink.model(model_type, **settings).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    assert not report["mismatched_keys"], report
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def generate(model: Any, *, use_cache: bool) -> torch.Tensor:
    how = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = IDS[:1, :8]
    return model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **how)


@pytest.mark.parametrize("method", METHODS)
def test_the_function_is_kept_to_the_last_bit(base, method, tmp_path):
    record = deepen.grow(base, tmp_path / "grown", method=method)
    before, after = load(base), load(tmp_path / "grown")
    assert record.depth == shrink.BLOCKS + 3
    assert torch.equal(logits(before), logits(after))
    assert torch.isfinite(logits(after)).all()
    result = deepen.verify(base, tmp_path / "grown", sequences=2, length=16)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert result.max_abs_logit_difference == 0.0


def test_generation_with_and_without_the_cache(base, tmp_path):
    deepen.grow(base, tmp_path / "grown")
    before, after = load(base), load(tmp_path / "grown")
    expected = generate(before, use_cache=True)
    assert torch.equal(generate(after, use_cache=True), expected)
    assert torch.equal(generate(after, use_cache=False), generate(before, use_cache=False))


def test_a_grown_model_can_be_saved_by_others_and_grown_again(base, tmp_path):
    deepen.grow(base, tmp_path / "once", new_layers=2)
    load(tmp_path / "once").save_pretrained(tmp_path / "saved")
    deepen.grow(tmp_path / "saved", tmp_path / "twice", new_layers=2, method="llama-pro")
    assert torch.equal(logits(load(tmp_path / "twice")), logits(load(base)))
    assert deepen.verify(base, tmp_path / "twice", sequences=1, length=8).passed


def test_a_live_module_is_grown_like_a_checkpoint(base, tmp_path):
    live = load(base)
    grown = deepen.grow_model(live, new_layers=2)
    assert torch.equal(logits(grown), logits(live))
    assert logits(grown).data_ptr() != logits(live).data_ptr()


def test_no_block_changes_its_kind_or_type(base, tmp_path):
    record = deepen.grow(base, tmp_path / "grown", placement="uniform", method="llama-pro")
    before, after = open_base(base).anatomy, open_base(tmp_path / "grown").anatomy
    parents = Plan.from_json(record.step.plan).type_parents
    assert [block.kind for block in after.blocks] == [before.blocks[p].kind for p in parents]
    assert list(after.types) == [before.types[p] for p in parents]


def test_every_family_has_a_case():
    assert set(FAMILIES) - {"llama", "mistral", "qwen2", "qwen3"} <= {t for t, _ in CASES.values()}


@pytest.mark.parametrize("method", METHODS)
def test_one_optimizer_step_does_not_throw_the_logits(base, method, tmp_path):
    deepen.grow(base, tmp_path / "grown", method=method)
    new = set(open_base(tmp_path / "grown").source.config["deepen"]["new_blocks"])
    model = load(tmp_path / "grown").train()
    family = FAMILIES[model.config.model_type]
    before = logits(model.eval())
    trained = []
    for name, parameter in model.named_parameters():
        place = family.split(name)
        parameter.requires_grad_(place is not None and place[0] in new)
        trained += [parameter] if parameter.requires_grad else []
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    after = logits(model.eval())
    assert not torch.equal(after, before)
    assert (after - before).abs().max() < 1e-3
