"""PyTorch's ``.bin`` files, which are pickles: read as weights alone, each held to be one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from deepen.common.errors import DeepenError
from deepen.common.quiet import let_torch_in

if TYPE_CHECKING:
    from torch import Tensor


def read_pickle(file: Path) -> dict[str, Tensor]:
    """Read a ``.bin`` file without running code from it, mapped from disk if its format allows.

    Raises:
        DeepenError: It is damaged, or holds something else than tensors by name.
    """
    let_torch_in()
    import torch

    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written by torch < 1.6: not a zip file, so it cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of torch's reader
        # What torch says first of a pickle that it refuses is how to read it all the same.
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        reason = said[-2 if isinstance(error, UnpicklingError) and len(said) > 2 else 0][:200]
        raise DeepenError(
            f"{str(file)!r} is damaged or holds more than weights "
            f"({reason.rstrip('.') or type(error).__name__}); fetch it again."
        ) from None
    if not isinstance(content, Mapping):
        raise DeepenError(
            f"{str(file)!r} holds a {type(content).__name__} and no state dict, tensors by name; "
            f"save `model.state_dict()` with torch, or the model with save_pretrained."
        )
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        _check_pickled(file, name, tensor)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _check_pickled(file: Path, name: object, tensor: Tensor) -> None:
    """Refuse a tensor that is not what a checkpoint holds: a name, and each number in memory.

    Raises:
        DeepenError: It is.
    """
    import torch

    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not isinstance(name, str):
        wrong = f"a tensor under {name!r}, which is no name"
    elif not plain or tensor.is_quantized or tensor.is_neg():
        wrong = f"{name!r} in a form ({tensor.layout}, {tensor.device.type}) that is no weight's"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        wrong = f"{name!r} of shape {list(tensor.shape)} with fewer numbers than that"
    else:
        return
    raise DeepenError(f"{str(file)!r} holds {wrong}; save the model anew with save_pretrained.")
