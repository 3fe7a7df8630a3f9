"""The largest of stored numbers, told by their words, against torch's own arithmetic."""

import math

import pytest
import torch

from deepen.base.weights.values import is_finite, magnitude

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def any_bits(dtype, shape, seed):
    """Draw tensors of every number that a dtype has, and some that are none."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-128, 128, (*shape, dtype.itemsize), generator=generator).to(torch.int8)
    return bits.view(dtype).squeeze(-1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_largest_word_is_the_largest_number(dtype):
    none = 0
    for seed in range(200):
        tensor = any_bits(dtype, (1 + seed % 3, 1 + seed % 5), seed)
        expected, found = float(tensor.double().abs().max()), magnitude(tensor)
        none += math.isnan(expected)
        assert found == expected or (math.isnan(found) and math.isnan(expected))
        assert is_finite(tensor) == bool(tensor.double().isfinite().all())
    assert none or dtype.itemsize > 2


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_word_of_a_dtype_is_read_right(dtype):
    """All words of one and two bytes, and the borders between kinds of number in wider ones."""
    bits = 8 * dtype.itemsize
    near = [0, 1, torch.finfo(dtype).max, torch.finfo(dtype).tiny, math.nan, math.inf]
    words = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) if bits <= 16 else None
    tensors = (
        words.to(WORDS[dtype.itemsize]).view(dtype)
        if words is not None
        else torch.tensor([sign * number for number in near for sign in (1, -1)], dtype=dtype)
    )
    step = max(1, len(tensors) // 2048)
    for one in tensors[::step]:
        value, found = float(one.double().abs()), magnitude(one.reshape(1))
        assert found == value or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize("dtype", FLOATS[:4], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found(dtype, value):
    tensor = torch.randn(37, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(tensor)
    tensor[20, 3] = value
    assert not is_finite(tensor)
    assert is_finite(tensor[:20])
    assert not is_finite(tensor.T[3])


def test_what_lies_otherwise_in_memory_is_read_as_it_stands():
    whole = torch.arange(24, dtype=torch.bfloat16).reshape(4, 6)
    whole[3, 5] = math.inf
    assert magnitude(whole[:, ::2].T) == 22
    assert magnitude(whole.T[5:]) == math.inf
    assert magnitude(-whole[1:2]) == 11


def test_numbers_that_are_no_floats_are_finite_and_nothing_is_too():
    assert magnitude(torch.tensor([-128, 127], dtype=torch.int8)) == 0
    assert is_finite(torch.tensor([True, False]))
    assert magnitude(torch.empty(0, 3)) == 0
