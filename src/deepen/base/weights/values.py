"""How large the numbers of a tensor are, told by the words that they are stored in.

Without its sign bit, a float's word is the larger the larger its value, Inf stands above all
numbers and NaN above Inf. So the largest word of a tensor says whether all of it is finite, and
looking for it takes a tenth of what converting every number does.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_FLOAT_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8}


def magnitude_of(raw: memoryview, dtype: str) -> float:
    """Return the largest absolute value among stored numbers, or NaN if there is one.

    Args:
        raw: The numbers as they are stored.
        dtype: What they are, by safetensors' name; the largest of what are no floats is 0, since
            every one of them is finite.
    """
    import numpy as np

    bits = _FLOAT_BITS.get(dtype)
    return _largest(np.frombuffer(raw, f"i{bits // 8}"), dtype) if bits else 0.0


def largest_of(one: float, other: float) -> float:
    """Return the larger of two magnitudes; NaN is the largest of all."""
    return max(one, other, key=lambda value: (math.isnan(value), value))


def _largest(words: Any, dtype: str) -> float:  # noqa: ANN401 (an array of numpy's, of any dtype)
    """Return the largest absolute value of an array of words that are floats."""
    if not words.size:
        return 0.0
    bits = _FLOAT_BITS[dtype]
    # The largest positive word, and the largest of the negative ones, which come after all
    # positive ones where words have no sign; two passes, and no array beside the words.
    positive = int(words.view(f"i{bits // 8}").max())
    either = int(words.view(f"u{bits // 8}").max()) & (1 << (bits - 1)) - 1
    return _value(max(positive, either), dtype)


def _value(word: int, dtype: str) -> float:
    """Return what a word without a sign stands for."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        return float(np.uint32(word << 16).view(np.float32))
    if dtype == "F8_E4M3":  # arXiv 2209.05433, table 1: no Inf, and NaN alone has all bits set
        exponent, fraction = word >> 3, (word & 7) / 8
        if word == 0x7F:
            return math.nan
        return math.ldexp(1 + fraction, exponent - 7) if exponent else math.ldexp(fraction, -6)
    bits = _FLOAT_BITS[dtype]
    return float(np.array(word, f"u{bits // 8}").view(f"f{bits // 8}"))


def magnitude(tensor: "Tensor") -> float:
    """Return the largest absolute value of a tensor of floats, or NaN; 0 for any other tensor."""
    import torch

    words = {
        torch.float64: ("F64", torch.int64),
        torch.float32: ("F32", torch.int32),
        torch.float16: ("F16", torch.int16),
        torch.bfloat16: ("BF16", torch.int16),
        torch.float8_e4m3fn: ("F8_E4M3", torch.int8),
    }
    if tensor.dtype not in words:
        return 0.0
    dtype, word = words[tensor.dtype]
    return _largest(tensor.detach().cpu().view(word).numpy(), dtype)


def is_finite(tensor: "Tensor") -> bool:
    """Whether a tensor is free of NaN and Inf."""
    return math.isfinite(magnitude(tensor))
