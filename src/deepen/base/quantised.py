"""Weights of eight bits with scales beside them: which are read, and what they stand for.

A value is what is stored times a scale: one for each rectangle of a weight in fine-grained FP8
(arXiv 2412.19437, section 3.3), one for each row or one for all elsewhere. Nothing is computed in
such numbers: blocks are copied as they lie, and turned into float32 where they are run or measured.
Zero stands for zero under every finite scale, so that a copy can be silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deepen.common.errors import DeepenError

if TYPE_CHECKING:
    from torch import Tensor

FIELD = "quantization_config"
"""What config.json calls the way in which weights are quantised."""
EIGHT_BITS = ("F8_E4M3", "I8")
"""The stored dtypes of quantised weights, by safetensors' names."""
_SCALES = ("F32", "BF16", "F16")


class Info(Protocol):
    """What is known of a stored tensor without reading it."""

    @property
    def dtype(self) -> str:
        """Stored dtype by safetensors' name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""


@dataclass(frozen=True)
class Quantisation:
    """How the weights of a checkpoint are quantised."""

    method: str
    """What config.json calls it."""
    dtype: str
    """Stored dtype of a quantised weight."""
    scale: str
    """What the scales of ``layer.weight`` are called beside it: ``layer.`` and this."""
    beside: str
    """What else may lie there, which its values do not depend on."""
    rectangle: tuple[int, int] | None = None
    """Rows and columns that share a scale; ``None`` if a row does, or all of a weight."""
    unit: float = 1.0
    """What a stored 1 stands for where the scale is 1."""

    def scale_of(self, weight: str) -> str:
        """Return the name of a weight's scales."""
        return weight.removesuffix("weight") + self.scale

    def values(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return what a quantised weight stands for, in float32.

        Args:
            weight: As it is stored, ``[out, in]``.
            scales: One for each rectangle, those at the far edges cut off, ``[⌈out/rows⌉,
                ⌈in/columns⌉]``; or one for each row, or one.
        """
        factors = scales.float() * self.unit
        if self.rectangle is None:
            return weight.float() * factors.reshape(-1, 1)
        for axis, size in enumerate(self.rectangle):
            length = weight.shape[axis]
            factors = factors.repeat_interleave(min(size, length), axis).narrow(axis, 0, length)
        return weight.float() * factors

    def fits(self, weight: Info, scales: Info) -> bool:
        """Whether scales can be those of a weight, by their dtype and shape."""
        if len(weight.shape) != 2 or scales.dtype not in _SCALES:
            return False
        out, _ = weight.shape
        if self.rectangle is None:
            return scales.shape in {(), (1,), (1, 1), (out,), (out, 1)}
        rectangles = zip(weight.shape, self.rectangle, strict=True)
        return scales.shape == tuple(-(-length // size) for length, size in rectangles)


def read_quantisation(config: Mapping[str, Any], name: str) -> Quantisation | None:
    """Read from config.json how weights are quantised; ``None`` if they are not.

    Args:
        config: Its content.
        name: What to call the model in an error.

    Raises:
        DeepenError: They are, in a way of which it is not proven that copies are exact.
    """
    if not (given := config.get(FIELD)):
        return None
    entry = _mapping(given)
    method = str(entry.get("quant_method", "unknown"))
    read = {"fp8": _fp8, "compressed-tensors": _compressed, "bitsandbytes": _bitsandbytes}
    found = read[method](entry) if method in read else None
    if found is None:
        raise DeepenError(
            f"The weights of {name!r} are quantised ({method}) in a way that deepen cannot prove "
            f"to grow exactly; grow the unquantised checkpoint and quantise the result."
        )
    return found


def _fp8(entry: Mapping[str, Any]) -> Quantisation | None:
    """Read the config of fine-grained FP8."""
    rectangle = _rectangle(entry.get("weight_block_size"))
    known = entry.get("fmt", "e4m3") == "e4m3" and entry.get("expert_dtype", "fp8") == "fp8"
    if not known or (rectangle is None and entry.get("weight_block_size") is not None):
        return None
    return Quantisation("fp8", "F8_E4M3", "weight_scale_inv", "activation_scale", rectangle)


def _compressed(entry: Mapping[str, Any]) -> Quantisation | None:
    """Read the config of compressed-tensors, of weights that are not packed."""
    dtypes = {"float-quantized": "F8_E4M3", "int-quantized": "I8"}
    groups, dtype = _mapping(entry.get("config_groups")), dtypes.get(str(entry.get("format")))
    if dtype is None or entry.get("transform_config") or len(groups) != 1:
        return None
    how = _mapping(_mapping(next(iter(groups.values()))).get("weights"))
    rectangle = _rectangle(how.get("block_structure"))
    by_block = how.get("strategy") == "block"
    if how.get("strategy") not in ("tensor", "channel", "block") or by_block != bool(rectangle):
        return None
    return Quantisation("compressed-tensors", dtype, "weight_scale", "input_scale", rectangle)


def _bitsandbytes(entry: Mapping[str, Any]) -> Quantisation | None:
    """Read the config of bitsandbytes, of weights in int8."""
    if not entry.get("load_in_8bit"):
        return None
    return Quantisation("bitsandbytes", "I8", "SCB", "weight_format", unit=1 / 127)


def _mapping(given: Any) -> Mapping[str, Any]:  # noqa: ANN401 (whatever config.json holds)
    """Return an object of config.json; an empty one if it is something else."""
    return given if isinstance(given, Mapping) else {}


def _rectangle(given: Any) -> tuple[int, int] | None:  # noqa: ANN401 (whatever config.json holds)
    """Read the size of the rectangles that share a scale; ``None`` if it is none."""
    sizes = tuple(given) if isinstance(given, list | tuple) else ()
    whole = len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes)
    return (sizes[0], sizes[1]) if whole else None


def scales_of(quantisation: Quantisation | None, infos: Mapping[str, Info]) -> dict[str, str]:
    """Find what lies beside quantised weights.

    Args:
        quantisation: How weights are quantised.
        infos: All tensors.

    Returns:
        Name of such a tensor → the weight.
    """
    if quantisation is None:
        return {}
    return {
        scale: weight
        for weight, info in infos.items()
        if info.dtype == quantisation.dtype
        for last in (quantisation.scale, quantisation.beside)
        if (scale := weight.removesuffix("weight") + last) in infos
    }


def check_scales(quantisation: Quantisation | None, infos: Mapping[str, Info], name: str) -> None:
    """Hold every weight of eight bits to its scales.

    Args:
        quantisation: How weights are quantised, by config.json.
        infos: All tensors.
        name: What to call the model.

    Raises:
        DeepenError: One has none or wrong ones, or config.json does not say that it is quantised.
    """
    for weight, info in infos.items():
        if info.dtype not in EIGHT_BITS:
            continue
        if quantisation is None or info.dtype != quantisation.dtype:
            raise DeepenError(
                f"Tensor {weight!r} is stored as {info.dtype}, and {FIELD} in config.json of "
                f"{name} says nothing of such weights; give it an unquantised checkpoint."
            )
        scales = infos.get(quantisation.scale_of(weight))
        if scales is None or not quantisation.fits(info, scales):
            found = f"are {scales.dtype} {list(scales.shape)}" if scales else "are not there"
            raise DeepenError(
                f"The scales {quantisation.scale_of(weight)!r} {found}, and {weight!r}, "
                f"{list(info.shape)}, does not go with that by {FIELD} in config.json of {name}; "
                f"fetch or export the checkpoint again."
            )


def refuse_quantised(quantisation: Quantisation | None, name: str) -> None:
    """Refuse a quantised model where it takes numbers that can be computed with.

    Raises:
        DeepenError: It is one.
    """
    if quantisation is not None:
        raise DeepenError(
            f"{name} is quantised ({quantisation.method}), and all that deepen does with such a "
            f"model is to grow it by copies (--method llama-pro), to verify, inspect and pack it; "
            f"give the unquantised weights."
        )
