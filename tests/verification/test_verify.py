"""verify must pass what is right and find whatever is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import tiny
from deepen.base.checkpoint import FolderSource
from deepen.base.model import open_model
from deepen.base.streamed import logits
from deepen.common.errors import DeepenError
from deepen.verification import running
from deepen.verification import verify as verification
from deepen.verification.claim import claim_of


@pytest.mark.parametrize("method", ["opt-deus", "avg-deus", "solar", "llama-pro", "lesa"])
def test_what_grow_writes_passes(any_family, tmp_path, method):
    deepen.grow(any_family, tmp_path / "grown", method=method)
    record = deepen.verify(any_family, tmp_path / "grown")
    assert record.passed, record
    assert verification.VerifyRecord.model_validate_json(record.model_dump_json()) == record
    assert record.tokens == 256
    if method in ("opt-deus", "llama-pro"):
        assert record.max_abs_logit_difference == 0.0
        assert record.kl_nats_per_token == pytest.approx(0.0, abs=1e-12)
    else:
        assert record.max_abs_logit_difference > 0
        assert record.kl_nats_per_token > 1e-6


def test_streamed_logits_are_those_of_the_loaded_model(any_family):
    ids = tiny.tokens(any_family)
    streamed = logits(open_model(any_family), ids, torch.device("cpu"))
    assert torch.equal(streamed, tiny.load(any_family)(ids).logits)


def test_kl_is_that_of_the_definition():
    p = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    q = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.kl_div(
        q.log_softmax(-1).flatten(0, 1),
        p.log_softmax(-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
    assert running.kl_nats_per_token(p, q) == pytest.approx(float(expected), rel=1e-5)


@pytest.fixture
def grown(llama, tmp_path) -> Path:
    """A grown checkpoint to change: 6 → 9 blocks, new ones at 3, 5, 7."""
    deepen.grow(llama, tmp_path / "grown")
    return tmp_path / "grown"


def config(change):
    """Return what applies a change to a checkpoint's config."""

    def apply(folder):
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize("difference", [5e-324, float("nan")])
def test_a_promised_function_is_the_base_s_to_the_last_bit(llama, grown, difference):
    claim = claim_of(open_model(llama), FolderSource(grown), trained=False)
    assert verification._check_function(claim, 0.0, 0.0, 0, 8, "tokens").passed
    assert not verification._check_function(claim, difference, 0.0, 0, 8, "tokens").passed


def test_another_base_is_found(llama, grown, tmp_path):
    other = tiny.save(tmp_path / "other", seed=1)
    record = deepen.verify(other, grown)
    assert not record.passed
    assert record.checks[0].name == "base is the one that was grown"
    assert "but tiny-llama with" in record.checks[0].detail


def test_a_checkpoint_that_was_not_grown_is_refused(llama):
    with pytest.raises(DeepenError, match="deepen did not grow it"):
        deepen.verify(llama, llama)


def test_a_lineage_from_the_future_is_refused(llama, grown):
    config(lambda c: c["deepen"].update(format=2))(grown)
    with pytest.raises(DeepenError, match="update deepen"):
        deepen.verify(llama, grown)


def test_without_a_tokenizer_the_tokens_are_random_and_say_so(llama, tmp_path):
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    deepen.grow(bare, tmp_path / "out", method="llama-pro", new_layers=1)
    record = deepen.verify(bare, tmp_path / "out")
    assert record.passed
    assert "random tokens" in record.checks[-1].detail


def test_both_models_meet_text_behind_bos_where_the_tokenizer_puts_it(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "bos")
    tokenizer = tiny.tokenizer("<eos> $A")
    tokenizer.save_pretrained(folder)
    tokens, _ = running.sample_tokens(open_model(folder), "one two three", 2, 8)
    bare, _ = running.sample_tokens(open_model(llama), "one two three", 2, 7)
    assert (tokens[:, 0] == tokenizer.eos_token_id).all()
    assert torch.equal(tokens[:, 1:], bare)


def test_a_text_of_one_s_own(llama, grown):
    assert deepen.verify(llama, grown, text="median of values", sequences=2, length=9).tokens == 18
    with pytest.raises(DeepenError, match="holds no tokens"):
        deepen.verify(llama, grown, text="")


@pytest.mark.parametrize("method", ["avg-deus", "llama-pro"])
def test_a_base_that_computes_no_numbers_is_told_and_no_fault_of_the_growth(
    llama, tmp_path, method
):
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    deepen.grow(base, tmp_path / "grown", method=method, new_layers=1)
    record = deepen.verify(base, tmp_path / "grown", sequences=1, length=8)
    assert record.passed, record
    assert "the base's own logits are not finite at 8 of them" in record.checks[-1].detail


def test_only_tokens_at_which_the_base_computes_numbers_are_compared():
    sound, broken = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    broken[0, 1] = float("nan")
    assert running.compared(broken, broken) == (0.0, 0.0, 1)
    difference, moved, unsound = running.compared(sound, broken)
    assert difference != difference
    assert moved != moved
    assert not unsound
