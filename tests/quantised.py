"""Tiny checkpoints with weights of eight bits and scales, as others publish them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

BLOCKS = (4, 8)
"""Rows and columns that share a scale; transformers takes no sizes that they do not divide."""


def fp8(folder: Path, *, rectangle: tuple[int, int] = BLOCKS, skip: tuple[str, ...] = ()) -> Path:
    """Rewrite a checkpoint in fine-grained FP8, modules whose path holds one of ``skip`` left."""
    config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(rectangle),
    }
    skipped: list[str] = []

    def store(name: str, weight: Tensor) -> dict[str, Tensor]:
        if any(part in name for part in skip):
            skipped.append(name.removesuffix(".weight"))
            return {name: weight}
        scales = _largest(weight, rectangle) / 448
        return {
            name: (weight.float() / _spread(scales, rectangle, weight)).to(torch.float8_e4m3fn),
            f"{name}_scale_inv": scales,
        }

    rewrite(folder, store, config)
    if skip:
        edit(folder, modules_to_not_convert=["lm_head", *sorted(skipped)])
    return folder


def per_tensor(folder: Path) -> Path:
    """Rewrite a checkpoint in FP8 with one scale for a weight, and one for what it multiplies."""
    config = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}

    def store(name: str, weight: Tensor) -> dict[str, Tensor]:
        scale = weight.float().abs().amax() / 448
        return {
            name: (weight.float() / scale).to(torch.float8_e4m3fn),
            f"{name}_scale_inv": scale,
            f"{name.removesuffix('weight')}activation_scale": torch.tensor(0.5),
        }

    return rewrite(folder, store, config)


def per_row(folder: Path, dtype: torch.dtype = torch.float8_e4m3fn) -> Path:
    """Rewrite a checkpoint as compressed-tensors stores FP8 or int8, one scale for each row."""
    is_float = dtype.is_floating_point
    numbers = {"num_bits": 8, "type": "float" if is_float else "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if is_float else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }

    def store(name: str, weight: Tensor) -> dict[str, Tensor]:
        scales = weight.float().abs().amax(1, keepdim=True) / (448 if is_float else 127)
        values = weight.float() / scales
        return {
            name: (values if is_float else values.round()).to(dtype),
            f"{name}_scale": scales.to(torch.bfloat16),
        }

    return rewrite(folder, store, config)


def int8(folder: Path) -> Path:
    """Rewrite a checkpoint as bitsandbytes stores int8."""

    def store(name: str, weight: Tensor) -> dict[str, Tensor]:
        largest = weight.float().abs().amax(1)
        stem = name.removesuffix("weight")
        return {
            name: (weight.float() * 127 / largest[:, None]).round().to(torch.int8),
            f"{stem}SCB": largest,
            f"{stem}weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    return rewrite(folder, store, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def rewrite(
    folder: Path, store: Callable[[str, Tensor], dict[str, Tensor]], config: dict[str, Any]
) -> Path:
    """Store every linear layer inside blocks otherwise, and say so in config.json."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        linear = ".layers." in name and "proj" in name and tensor.dim() == 2
        tensors |= store(name, tensor) if linear else {name: tensor}
    save(folder, tensors)
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(whole | {"quantization_config": config}))
    return folder


def edit(folder: Path, **fields: Any) -> None:
    """Change how a checkpoint's config.json says that it is quantised."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


def save(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint's tensors."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def _largest(weight: Tensor, rectangle: tuple[int, int]) -> Tensor:
    """Return the largest size of a number in each rectangle, the last ones cut off."""
    rows = weight.float().abs().split(rectangle[0], 0)
    return torch.stack(
        [torch.stack([part.amax() for part in row.split(rectangle[1], 1)]) for row in rows]
    )


def _spread(scales: Tensor, rectangle: tuple[int, int], weight: Tensor) -> Tensor:
    """Return the scale of every number, by its place."""
    rows, columns = (
        torch.arange(n) // size for n, size in zip(weight.shape, rectangle, strict=True)
    )
    return scales[rows][:, columns]
