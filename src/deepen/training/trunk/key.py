"""What decides a state, as a short hash: weights, settings, tokens and software."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from deepen.base.checkpoint import as_bytes
from deepen.base.model import Model
from deepen.training.data.packed import PackedSequences

_WITHOUT = frozenset({"deepen", "dtype", "torch_dtype", "transformers_version", "_name_or_path"})
"""Fields of a config that change no state."""
_ABOVE = ("norm", "head")


def trunk_key(model: Model, below: int, dtype: torch.dtype, device: torch.device) -> str:
    """Hash a trunk: every byte of its weights, and what they are computed with.

    Models that were grown from one base have a trunk in common up to their lowest new block.

    Args:
        model: The checkpoint.
        below: Number of blocks in the trunk.
        dtype: Arithmetic of the passes.
        device: Where they run.
    """
    digest = hashlib.sha256()
    for name in sorted(_tensors(model, below)):
        info = model.source.infos[name]
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
        digest.update(as_bytes(model.source.load(name)).numpy().data)
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    software = [version("torch"), version("transformers")]
    rest = [_config(model, below), below, str(dtype), on, software]
    digest.update(json.dumps(rest, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def states_key(trunk: str, data: PackedSequences) -> str:
    """Hash a trunk and the sequences that it is run on.

    Args:
        trunk: The trunk's hash.
        data: One source.
    """
    parts = [trunk, data.digest(), data.sequence_length]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _tensors(model: Model, below: int) -> list[str]:
    """List the tensors of the trunk: its blocks, and all outside them but what stands above."""
    names = []
    for name in model.source.infos:
        place = model.family.split(name)
        if place is None and model.family.part(name) in _ABOVE:
            continue
        if place is None or place[0] < below:
            names.append(name)
    return names


def _config(model: Model, below: int) -> Mapping[str, Any]:
    """Return the settings of a trunk, what they say of blocks above it left out."""
    family, kept = model.family, {}
    depths = {family.depth_field, *family.depth_aliases}
    for field, value in model.resolved.items():
        if field in _WITHOUT | depths or value is None:
            continue
        if field in family.per_layer_lists:
            kept[field] = value[:below]
        elif field in family.prefix_counts and isinstance(value, int):
            kept[field] = min(value, below)
        else:
            kept[field] = value
    return kept


def _processor() -> str:
    """Name the instructions that a processor's products are made of."""
    return str(torch.backends.cpu.get_cpu_capability())
