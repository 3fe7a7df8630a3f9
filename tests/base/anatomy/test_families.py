"""Every family: grown models compute what their base computes, and stay what they are."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import deepen
import shrink
from cases import CASES
from deepen.base.anatomy import FAMILIES
from deepen.base.model import open_model
from deepen.planning.plan import Plan

IDS = torch.randint(1, shrink.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
STRUCTURED = {"method": "opt-deus", "options": {"fidelity": "structured"}}


@dataclass(frozen=True)
class Pair:
    """A tiny base and what it was grown into, on disk and loaded."""

    base: Path
    grown: Path
    before: Any
    after: Any


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Each family in turn, in float32 as transformers saves it, grown by opt-deus."""
    folder = tmp_path_factory.mktemp("families")
    base, grown = folder / request.param, folder / "grown"
    model_type, settings = CASES[request.param]
    if shrink.EARLIER and request.param == "doge-experts":
        pytest.skip("its experts could not be run by earlier versions of transformers")
    shrink.model(model_type, **settings).save_pretrained(base)
    record = deepen.grow(base, grown, **STRUCTURED)
    assert record.depth > record.base_depth == shrink.BLOCKS
    return Pair(base, grown, shrink.load(base), shrink.load(grown))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def generate(model: Any, tokens: int, *, use_cache: bool) -> torch.Tensor:
    how = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = IDS[:1, :8]
    return model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **how)


def test_the_function_is_kept_to_the_last_bit(pair):
    assert torch.isfinite(logits(pair.before)).all()
    assert torch.equal(logits(pair.after), logits(pair.before))
    result = deepen.verify(pair.base, pair.grown, sequences=2, length=16)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert result.max_abs_logit_difference == 0.0


def test_generation_with_and_without_the_cache(pair):
    # Windows, chunks and what indexers keep are 8 tokens and fewer: a cache forgets twice and more.
    for use_cache, tokens in ((True, 20), (False, 4)):
        expected = generate(pair.before, tokens, use_cache=use_cache)
        assert torch.equal(generate(pair.after, tokens, use_cache=use_cache), expected)


def test_a_grown_model_can_be_saved_by_others_and_grown_again(pair, tmp_path):
    pair.after.save_pretrained(tmp_path / "saved")
    record = deepen.grow(tmp_path / "saved", tmp_path / "twice", method="llama-pro")
    assert record.depth > record.base_depth > shrink.BLOCKS
    assert torch.equal(logits(shrink.load(tmp_path / "twice")), logits(pair.before))


def test_a_live_module_is_grown_like_a_checkpoint(pair):
    grown = deepen.grow_model(pair.before, **STRUCTURED)
    assert torch.equal(logits(grown), logits(pair.before))
    for name, tensor in pair.after.state_dict().items():
        assert torch.equal(grown.state_dict()[name], tensor)


def test_no_block_changes_its_kind_or_type(pair, tmp_path):
    record = deepen.grow(pair.base, tmp_path / "grown", placement="uniform", method="llama-pro")
    before, after = open_model(pair.base).anatomy, open_model(tmp_path / "grown").anatomy
    parents = Plan.from_json(record.step.plan).type_parents
    assert [block.kind for block in after.blocks] == [before.blocks[p].kind for p in parents]
    assert list(after.types) == [before.types[p] for p in parents]
    assert torch.equal(logits(shrink.load(tmp_path / "grown")), logits(pair.before))


def test_one_optimizer_step_does_not_throw_the_logits(pair):
    new = open_model(pair.grown).source.config["deepen"]["new_blocks"]
    model, family = copy.deepcopy(pair.after), FAMILIES[pair.after.config.model_type]
    before = logits(model)
    trained = []
    for name, parameter in model.named_parameters():
        place = family.split(name)
        parameter.requires_grad_(place is not None and place[0] in new)
        trained += [parameter] if parameter.requires_grad else []
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    model.train()(IDS, labels=IDS).loss.backward()
    optimizer.step()
    after = logits(model.eval())
    assert not torch.equal(after, before)
    assert (after - before).abs().max() < 5e-3


def test_every_family_has_a_case():
    assert set(FAMILIES) - {"llama", "mistral", "qwen2", "qwen3"} <= {t for t, _ in CASES.values()}
