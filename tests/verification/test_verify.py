"""verify must pass what is right and find whatever is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deepen
import tiny
from deepen.base.model import open_model
from deepen.base.streamed import logits
from deepen.common.errors import DeepenError
from deepen.verification import running
from deepen.verification import verify as verification


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
    """A grown checkpoint to tamper with: 6 → 9 blocks, new ones at 3, 5, 7."""
    deepen.grow(llama, tmp_path / "grown")
    return tmp_path / "grown"


def tamper(change):
    """Return what applies a change to a checkpoint's tensors."""

    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def config(change):
    """Return what applies a change to a checkpoint's config."""

    def apply(folder):
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return apply


def flip(tensors, name, position=0):
    """Flip the lowest bit of one number."""
    raw = tensors[name].view(torch.int16).flatten()
    raw[position] ^= 1


TAMPERED = {
    "one bit of a kept block": (
        tamper(lambda t: flip(t, "model.layers.8.mlp.up_proj.weight", -1)),
        "kept blocks",
    ),
    "one bit of the embeddings": (
        tamper(lambda t: flip(t, "model.embed_tokens.weight")),
        "kept blocks",
    ),
    "the sign of a zero": (
        tamper(lambda t: t["model.layers.3.mlp.down_proj.weight"].fill_(-0.0)),
        None,
    ),
    "an output that is not zero": (
        tamper(lambda t: t["model.layers.3.mlp.down_proj.weight"][0].fill_(1e-3)),
        "new blocks",
    ),
    "NaN in a new block": (
        tamper(lambda t: t["model.layers.5.mlp.up_proj.weight"][0].fill_(float("nan"))),
        "new blocks",
    ),
    "a missing tensor": (
        tamper(lambda t: t.pop("model.layers.5.mlp.up_proj.weight")),
        "every tensor",
    ),
    "an extra tensor": (tamper(lambda t: t.update(extra=torch.zeros(2))), "every tensor"),
    "a dtype": (
        tamper(lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float()})),
        "every tensor",
    ),
    "a shape": (
        tamper(lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:-1].clone()})),
        "every tensor",
    ),
    "the depth": (config(lambda c: c.update(num_hidden_layers=8)), "config.json"),
    "a setting": (config(lambda c: c.update(rms_norm_eps=1e-3)), "config.json"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_found(llama, grown, case):
    change, where = TAMPERED[case]
    change(grown)
    record = deepen.verify(llama, grown)
    failed = [check.name for check in record.checks if not check.passed]
    if where is None:
        assert record.passed
        return
    assert failed
    assert failed[0].startswith(where) or failed[0] == "every tensor present, nothing extra"


def test_a_wrong_promise_is_found_by_the_logits(llama, tmp_path, monkeypatch):
    """A method that only says that it keeps the function fails."""
    deepen.grow(llama, tmp_path / "grown", method="avg-deus")
    config(lambda c: c["deepen"]["steps"][0].update(preserves_function=True))(tmp_path / "grown")
    monkeypatch.setattr(
        verification, "_check_new", lambda *_: verification.Check(name="x", passed=True, detail="")
    )
    record = deepen.verify(llama, tmp_path / "grown")
    assert [c.name for c in record.checks if not c.passed] == ["computes what the base computes"]


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


def test_without_a_tokenizer_the_tokens_are_random_and_say_so(llama, grown, tmp_path):
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    record = deepen.verify(bare, grown)
    assert record.passed
    assert "random tokens" in record.checks[-1].detail


def test_a_text_of_one_s_own(llama, grown):
    assert deepen.verify(llama, grown, text="median of values", sequences=2, length=9).tokens == 18
    with pytest.raises(DeepenError, match="holds no tokens"):
        deepen.verify(llama, grown, text="")
