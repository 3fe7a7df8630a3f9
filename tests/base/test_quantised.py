"""Values are what their definitions make of stored numbers; what does not fit is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

import deepen
import quantised
import runs
import tiny
from deepen.base.checkpoint import FolderSource
from deepen.base.model import open_model
from deepen.base.quantised import FIELD, Quantisation, read_quantisation
from deepen.common.errors import DeepenError

FORMATS = {
    "fp8": quantised.fp8,
    "fp8, edges cut off": lambda folder: quantised.fp8(folder, rectangle=(5, 7)),
    "fp8, one scale": quantised.per_tensor,
    "compressed-tensors": quantised.per_row,
    "compressed-tensors, int8": lambda folder: quantised.per_row(folder, torch.int8),
    "bitsandbytes": quantised.int8,
}


@pytest.fixture
def fp8(tmp_path):
    return quantised.fp8(tiny.save(tmp_path / "base"))


@pytest.mark.parametrize("case", FORMATS)
def test_values_are_those_that_were_quantised_but_for_rounding(case, llama, tmp_path):
    base = FORMATS[case](tiny.save(tmp_path / "base"))
    source = FolderSource(base)
    assert source.quantisation is not None
    weights = [name for name, info in source.infos.items() if info.dtype in ("F8_E4M3", "I8")]
    assert len(weights) == 42
    for name, tensor in load_file(llama / "model.safetensors").items():
        found = source.value(name)
        if name not in weights:
            assert torch.equal(found, tensor)
            continue
        # Half a step of int8's even grid, or one part in 16 of e4m3; bfloat16 scales round too.
        largest = tensor.abs().amax()
        assert ((found - tensor.float()).abs() <= tensor.abs() / 15 + largest / 200).all()
        assert (found - tensor.float()).abs().max() > 0


def test_each_number_has_the_scale_of_its_rectangle():
    weight, scales = torch.ones(5, 7).to(torch.float8_e4m3fn), torch.arange(6.0).reshape(2, 3)
    made = Quantisation("fp8", "F8_E4M3", "s", "", (3, 3)).values(weight, scales)
    assert made[:, [0, 3, 6]].tolist() == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 2
    whole = Quantisation("fp8", "F8_E4M3", "s", "", (10**9, 10**9))
    assert torch.equal(whole.values(weight, torch.tensor([[3.0]])), torch.full((5, 7), 3.0))
    rows = Quantisation("x", "I8", "s", "", unit=0.5).values(
        torch.full((2, 3), 4, dtype=torch.int8), torch.tensor([1.0, 3.0])
    )
    assert rows.tolist() == [[2.0] * 3, [6.0] * 3]


def test_transformers_computes_the_same_from_the_same_numbers(fp8):
    module = tiny.load(fp8, torch.float32)
    source = FolderSource(fp8)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.float(), source.value(name).float()), name


@pytest.mark.parametrize(
    "entry",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [8, 8]},
        {"quant_method": "fp8", "expert_dtype": "fp4", "weight_block_size": [8, 8]},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"g": {"weights": {"strategy": "group"}}},
        },
        {"quant_method": ["fp8"]},
        {"quant_method": "compressed-tensors", "format": ["float-quantized"]},
        {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": [1]},
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"g": ["weights"]},
        },
        "gptq",
    ],
)
def test_what_is_not_proven_is_refused(entry):
    with pytest.raises(DeepenError, match=r"quantised \(.*grow the unquantised checkpoint"):
        read_quantisation({"quantization_config": entry}, "base")


def drop(tensors, name):
    del tensors[name]


SCALE = "model.layers.2.mlp.up_proj.weight_scale_inv"
SPOILT = {
    "no scales": (lambda t: drop(t, SCALE), "are not there"),
    "of another size": (lambda t: t.update({SCALE: t[SCALE][:-1]}), r"are F32 \[9, 3\]"),
    "integers": (lambda t: t.update({SCALE: t[SCALE].long()}), "are I64"),
    "scales of nothing": (lambda t: t.update(x=t.pop(SCALE)), "are not there"),
    "beside an unquantised weight": (
        lambda t: t.update({SCALE[:-10]: t[SCALE[:-10]].float()}),
        "weight_scale_inv' is not part of",
    ),
    "int8 in FP8": (
        lambda t: t.update({SCALE[:-10]: t[SCALE[:-10]].to(torch.int8)}),
        "stored as I8, and quantization_config",
    ),
    "a quantised head": (
        lambda t: t.update(
            {
                "lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn),
                "lm_head.weight_scale_inv": torch.ones(80, 3),
            }
        ),
        "'lm_head.weight' is quantised and belongs to no block",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_weights_without_their_scales_are_named(case, fp8):
    spoil, sentence = SPOILT[case]
    tensors = load_file(fp8 / "model.safetensors")
    spoil(tensors)
    quantised.save(fp8, tensors)
    with pytest.raises(DeepenError, match=sentence):
        open_model(fp8, quantised=True)


def test_what_computes_with_weights_refuses_quantised_ones(fp8, tmp_path):
    live = tiny.load(fp8)
    live.config.quantization_config = json.loads((fp8 / "config.json").read_text())[FIELD]
    for refused in (
        lambda: deepen.evaluate(fp8, perplexity=[fp8 / "LICENSE"]),
        lambda: runs.trained(fp8, tmp_path / "run"),
        lambda: deepen.grow_model(live),
        lambda: open_model(fp8),
    ):
        with pytest.raises(DeepenError, match=r"is quantised \(fp8\).*give the unquantised"):
            refused()
