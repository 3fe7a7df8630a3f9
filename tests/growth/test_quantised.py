"""Quantised blocks grow by copies of their bytes, and the model computes what it did."""

import json

import pytest
import torch
from safetensors.torch import load_file

import deepen
import quantised
import shrink
import tiny
from cases import CASES
from deepen.common.errors import DeepenError
from deepen.growth.preview import UNTRAINABLE

MIXTURES = {
    "qwen3_moe": {"moe_intermediate_size": 24},
    "deepseek_v3": {"first_k_dense_replace": 2, "num_nextn_predict_layers": 1},
}


def folder_of(case, folder):
    """Save a tiny checkpoint, with a multi-token-prediction block where the family has them."""
    if case not in MIXTURES:
        return tiny.save(folder, case)
    settings = CASES[case][1] | MIXTURES[case]
    shrink.model(case, **settings).to(torch.bfloat16).save_pretrained(folder)
    if "num_nextn_predict_layers" in settings:
        tensors = load_file(folder / "model.safetensors")
        last = {name: t for name, t in tensors.items() if name.startswith("model.layers.5.")}
        after = {name.replace("s.5.", "s.6."): t.clone() for name, t in last.items()}
        quantised.save(folder, tensors | after)
    return folder


@pytest.mark.parametrize("case", ["llama", "qwen3", *MIXTURES])
def test_fp8_grows_by_copies_and_computes_the_same(case, tmp_path):
    base = quantised.fp8(folder_of(case, tmp_path / "base"))
    record = deepen.grow(base, tmp_path / "grown", method="llama-pro", new_layers=2)
    found = deepen.verify(base, tmp_path / "grown")
    assert found.passed, found
    assert found.max_abs_logit_difference == 0.0
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "grown" / "model.safetensors")
    silent = set()
    for index, block in enumerate([*record.step.plan, 6]):  # the last is no block of the stack
        source = block if isinstance(block, int) else block[0]
        prefix, origin = f"model.layers.{index}.", f"model.layers.{source}."
        names = [name for name in before if name.startswith(origin)]
        assert len(names) == sum(name.startswith(prefix) for name in after)
        for name in names:
            made, kept = after[name.replace(origin, prefix)], before[name]
            assert made.dtype == kept.dtype
            if torch.equal(made.view(torch.uint8), kept.view(torch.uint8)):
                continue
            silent.add(name.removeprefix(origin))
            assert not isinstance(block, int)
            assert not made.view(torch.uint8).any()
    assert silent
    assert all("o_proj" in name or "down_proj" in name for name in silent)
    assert not any("scale" in name for name in silent)


@pytest.mark.parametrize(
    ("case", "store"),
    [
        ("llama", quantised.fp8),
        ("qwen3_moe", quantised.fp8),
        ("llama", quantised.per_tensor),
    ],
)
def test_transformers_loads_what_was_grown(case, store, tmp_path):
    base = store(folder_of(case, tmp_path / "base"))
    deepen.grow(base, tmp_path / "grown", method="llama-pro")
    assert deepen.verify(base, tmp_path / "grown").passed
    ids = torch.arange(40).reshape(2, 20)
    before, after = (
        tiny.load(folder, torch.bfloat16)(ids).logits for folder in (base, tmp_path / "grown")
    )
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "store",
    [
        quantised.per_row,
        lambda folder: quantised.per_row(folder, torch.int8),
        quantised.int8,
        lambda folder: quantised.fp8(folder, rectangle=(5, 7)),
    ],
    ids=["compressed-tensors", "compressed-tensors, int8", "bitsandbytes", "edges cut off"],
)
def test_other_formats_grow_and_verify(store, tmp_path):
    base = store(tiny.save(tmp_path / "base"))
    deepen.grow(base, tmp_path / "grown", method="llama-pro", new_layers=2)
    found = deepen.verify(base, tmp_path / "grown")
    assert found.passed, found


def test_what_was_grown_grows_again(tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    deepen.grow(base, tmp_path / "once", method="llama-pro", new_layers=2)
    deepen.grow(tmp_path / "once", tmp_path / "grown", method="llama-pro", new_layers=1)
    for before in (base, tmp_path / "once"):
        found = deepen.verify(before, tmp_path / "grown")
        assert found.passed, found


def test_solar_copies_whole_blocks(tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    deepen.grow(base, tmp_path / "grown", method="solar", new_layers=4)
    found = deepen.verify(base, tmp_path / "grown")
    assert found.passed, found
    assert found.kl_nats_per_token > 0


def test_modules_that_are_not_quantised_are_counted_anew(tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"), skip=("layers.1.mlp", "layers.5.self_attn"))
    deepen.grow(base, tmp_path / "grown", method="llama-pro", placement="after:1,4", new_layers=2)
    assert deepen.verify(base, tmp_path / "grown").passed
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    stored = load_file(tmp_path / "grown" / "model.safetensors")
    listed = set(config["quantization_config"]["modules_to_not_convert"]) - {"lm_head"}
    in_blocks = {name for name in stored if "proj.weight" in name and "scale" not in name}
    whole = {name for name in in_blocks if stored[name].dtype == torch.bfloat16}
    assert {f"{name}.weight" for name in listed} == whole
    assert len(whole) == 2 * 3 + 4


def test_what_a_record_counts_are_parameters_and_no_scales(llama, tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    found, plain = (deepen.plan(folder, method="llama-pro").growth for folder in (base, llama))
    assert found.base_parameters == plain.base_parameters
    assert (found.parameters, found.new_parameters) == (plain.parameters, plain.new_parameters)
    assert found.weight_bytes < plain.weight_bytes
    assert [note for note in found.notes if note not in plain.notes] == [UNTRAINABLE]


def test_the_card_says_what_can_be_done(tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    deepen.grow(base, tmp_path / "grown", method="llama-pro")
    card = (tmp_path / "grown" / "README.md").read_text()
    assert "Its weights are quantised (fp8)" in card
    assert "grow the unquantised base" in card
    assert "before you quantise" not in card
    assert "requires_grad" not in card


@pytest.mark.parametrize("method", ["opt-deus", "avg-deus", "lesa", "random"])
def test_methods_that_compute_ask_for_the_unquantised_weights(method, tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    for act in (deepen.plan, lambda *a, **k: deepen.grow(*a, tmp_path / "grown", **k)):
        with pytest.raises(DeepenError, match=f"{method} computes .* --method llama-pro"):
            act(base, method=method)
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize(
    "options", [{"output_scale": 0.5}, {"output_noise": 0.001}, {"feature_scale": 2}]
)
def test_options_that_compute_are_refused(options, tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    with pytest.raises(DeepenError, match=f"{next(iter(options))} computes new weights"):
        deepen.grow(base, tmp_path / "grown", method="llama-pro", options=options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("down_proj.weight_scale_inv", torch.inf), ("up_proj.weight_scale_inv", torch.nan)],
)
def test_a_zero_that_would_be_none_is_refused(name, value, tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors[f"model.layers.1.mlp.{name}"][2, 1] = value
    quantised.save(base, tensors)
    with pytest.raises(DeepenError, match="block 1 holds NaN or Inf"):
        deepen.grow(base, tmp_path / "grown", method="llama-pro")
    assert not (tmp_path / "grown").exists()


SCALE = "model.layers.{}.mlp.{}_proj.weight_scale_inv"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (SCALE.format(0, "down"), "differs from the base's model.layers.0"),
        (SCALE.format(2, "down"), "which it copies"),  # under zeros, so that no logit moves
        (SCALE.format(2, "up"), "which it copies"),
        ("model.layers.2.mlp.up_proj.weight", "which it copies"),
        ("model.layers.2.mlp.down_proj.weight", "is not 0"),
        ("model.layers.4.mlp.down_proj.weight", "differs from the base's model.layers.3"),
    ],
)
def test_verify_sees_a_changed_scale_and_a_changed_value(name, said, tmp_path):
    base, grown = quantised.fp8(tiny.save(tmp_path / "base")), tmp_path / "grown"
    deepen.grow(base, grown, method="llama-pro")
    tensors = load_file(grown / "model.safetensors")
    tensors[name].view(torch.uint8).flatten()[5] ^= 0x10
    quantised.save(grown, tensors)
    found = deepen.verify(base, grown)
    assert not found.passed
    assert any(said in check.detail for check in found.checks if not check.passed), found


def test_packs_of_quantised_blocks_give_back_every_byte(tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    deepen.grow(base, tmp_path / "grown", method="llama-pro", new_layers=2)
    deepen.pack(tmp_path / "grown", tmp_path / "pack")
    deepen.attach(base, tmp_path / "pack", tmp_path / "again")
    assert tiny.read(tmp_path / "again") == tiny.read(tmp_path / "grown")
    deepen.shrink(tmp_path / "grown", tmp_path / "shrunk")
    assert tiny.read(tmp_path / "shrunk") == tiny.read(base)
    assert deepen.reproduce(tmp_path / "grown", base=base).passed
    packs = (tmp_path / "pack", tmp_path / "pack")
    deepen.combine(base, *packs, tmp_path / "both", how="interleave")
    assert deepen.verify(base, tmp_path / "both").passed
    with pytest.raises(DeepenError, match=r"quantised \(fp8\)"):
        deepen.combine(base, *packs, tmp_path / "mean", how="average")
    assert not (tmp_path / "mean").exists()


def test_inspect_measures_values(llama, tmp_path):
    base = quantised.fp8(tiny.save(tmp_path / "base"))
    found, plain = (deepen.inspect(folder, alignment=True) for folder in (base, llama))
    assert found.dtypes == ["BF16", "F32", "F8_E4M3"]
    assert found.parameters_per_block == plain.parameters_per_block
    for ours, theirs in zip(found.alignment.blocks, plain.alignment.blocks, strict=True):
        assert ours.function_change < 1e-5
        assert ours.effective_matches == pytest.approx(theirs.effective_matches, rel=0.05)
