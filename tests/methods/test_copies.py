"""LLaMA PRO, SOLAR and Avg-DeUS against their rules, tensor by tensor."""

import pytest
import torch
from safetensors.torch import load_file

import deepen


def grown(base, tmp_path, method, **how):
    record = deepen.grow(base, tmp_path / "grown", method=method, **how)
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "grown/model.safetensors"),
    )

    def block(tensors, index):
        prefix = f"model.layers.{index}."
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return record, lambda i: block(before, i), lambda i: block(after, i)


def test_llama_pro_copies_the_block_below_but_for_its_outputs(llama, tmp_path):
    record, base, new = grown(llama, tmp_path, "llama-pro")
    assert record.step.new_blocks == [2, 5, 8]
    for index, below in zip((2, 5, 8), (1, 3, 5), strict=True):
        for name, tensor in new(index).items():
            expected = base(below)[name]
            zeroed = name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            assert torch.equal(tensor, torch.zeros_like(expected) if zeroed else expected)


def test_solar_copies_are_the_blocks_they_repeat(llama, tmp_path):
    record, base, new = grown(llama, tmp_path, "solar", new_layers=4)
    order = [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]
    assert record.depth == len(order)
    for index, source in enumerate(order):
        assert all(torch.equal(t, base(source)[name]) for name, t in new(index).items())


@pytest.mark.parametrize("per_gap", [1, 2])
def test_avg_deus_interpolates_in_float32(llama, tmp_path, per_gap):
    record, base, new = grown(llama, tmp_path, "avg-deus", new_layers=3 * per_gap, per_gap=per_gap)
    for index in record.step.new_blocks:
        below, above, t = record.step.plan[index]
        for name, tensor in new(index).items():
            a, b = base(below)[name].double(), base(above)[name].double()
            exact = (1 - t) * a + t * b
            error = (tensor.double() - exact).abs()
            assert (error <= exact.abs() * 2**-8 + 1e-6).all()  # one rounding to bfloat16
