"""The linear layers of a block as transformers holds it, and the neurons of its FFN.

Training a part of a block, low-rank adapters or single neurons, asks for both, and so does counting
what that costs.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from deepen.base.anatomy import Anatomy, BlockAnatomy
from deepen.base.anatomy.freedom import FFN, beside
from deepen.base.anatomy.tensors import Place
from deepen.base.model import Model
from deepen.common.errors import DeepenError

_SCANNED = {"x_proj", "dt_proj", "out_proj"}
"""Layers of a Mamba mixer whose weights its kernels read without calling them."""


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer of a block."""

    path: str
    """Its path in transformers' model, for ``get_submodule``."""
    outputs: int
    """Width of what it computes."""
    inputs: int
    """Width of what it reads."""
    first: bool
    """Whether it reads the stream as it comes into the block: queries, keys, a mixer's input."""
    last: bool
    """Whether it writes into the stream: an output projection."""
    called: bool
    """Whether it is called wherever the model runs, so that an adapter on it has a say."""


@dataclass(frozen=True)
class NeuronSlice:
    """Where a stored tensor holds some of an FFN's neurons."""

    name: str
    """The tensor."""
    axis: int
    """The axis that counts neurons, as it is stored."""
    positions: tuple[int, ...]
    """Where they stand along it."""


def linear_layers(model: Model, index: int) -> list[LinearLayer]:
    """Find the linear layers of a block, GPT-2's transposed ones among them.

    Raises:
        DeepenError: The block has experts that are no linear layers, or uses the weights of its
            layers without calling them, so that nothing can be put on them.
    """
    from transformers.pytorch_utils import Conv1D

    memory, path = model.in_memory, f"{model.blocks_path}.{index}"
    block, stored = memory.module.get_submodule(path), memory.anatomy.blocks[index].stored
    for suffix, spec in stored.items():
        if spec.bank and any(part.is_weight for part in spec.parts):
            raise DeepenError(
                f"The experts of block {index} of {model.source.name} lie in one tensor "
                f"({suffix!r}) and are no linear layers, which adapters and training.protect need; "
                f"choose blocks without experts, or train whole blocks."
            )
    used_inside = {type(part).__name__ for part in block.modules()} & {*model.family.preload}
    if used_inside:
        raise DeepenError(
            f"{min(used_inside)} in block {index} of {model.source.name} reads the weights of its "
            f"layers without calling them, so adapters and training.protect would do nothing "
            f"there; choose other blocks, or train whole ones."
        )
    found, called = [], {name for name, _ in called_modules(block)}
    for name, layer in block.named_modules():
        if not isinstance(layer, nn.Linear | Conv1D):
            continue
        shape = tuple(layer.weight.shape)
        outputs, inputs = shape[::-1] if isinstance(layer, Conv1D) else shape
        parts = stored[f"{name}.weight"].parts
        first = all(part.axes[1:] == ("residual",) and part.role not in FFN for part in parts)
        last = any(part.writes_residual for part in parts)
        found.append(LinearLayer(f"{path}.{name}", outputs, inputs, first, last, name in called))
    return found


def adaptable_layers(model: Model, index: int) -> list[LinearLayer]:
    """Find the linear layers of a block that take adapters.

    Raises:
        DeepenError: See ``linear_layers``.
    """
    return [layer for layer in linear_layers(model, index) if layer.called]


def called_modules(
    module: nn.Module, unread: Container[str] = (), path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside a block whose weights are read by calling them.

    Args:
        module: The block.
        unread: Names of classes that read the weights of their layers without calling them.
        path: The module's path in the block.

    Returns:
        Path in the block, and module.
    """
    if type(module).__name__ in unread:
        return
    if path:
        yield path, module
    is_mamba = {"A_log", "D"} <= {name for name, _ in module.named_parameters(recurse=False)}
    for name, child in module.named_children():
        if not (is_mamba and name in _SCANNED):
            yield from called_modules(child, unread, f"{path}.{name}" if path else name)


def ffn_width(model: Model) -> int:
    """Return the number of neurons that every FFN of a model has.

    Raises:
        DeepenError: Its FFNs are experts, differ in width, or it has none.
    """
    memory = model.in_memory
    widths = set()
    for index, block in enumerate(memory.anatomy.blocks):
        for logical, axis in neuron_tensors(block, index, model.source.name).items():
            place = block.places[logical]
            shape = memory.shapes[memory.anatomy.family.name(index, place.suffix)]
            widths.add(place.read(torch.empty(shape, device="meta"), block.sizes).shape[axis])
    if len(widths) != 1:
        found = f"FFNs of {len(widths)} widths" if widths else "no FFN that deepen knows"
        raise DeepenError(
            f"{model.source.name} has {found}, and neurons can be added to, and trained in, FFNs "
            f"of one width alone."
        )
    return widths.pop()


def neuron_tensors(block: BlockAnatomy, index: int, name: str) -> dict[str, int]:
    """Name the logical tensors that have a row or a column for each neuron of a block's FFN.

    Args:
        block: What the block is made of.
        index: Its index, for errors.
        name: What to call the model in an error.

    Returns:
        Logical name → the axis that counts neurons: 0 for weights and biases of gate and up, 1 for
        the output projection. Nothing for a block without an FFN.

    Raises:
        DeepenError: The FFN is made of experts, or something else in the block sees single neurons.
    """
    if not block.units:
        return {}
    if block.units != ("",):
        raise DeepenError(
            f"Block {index} of {name} has experts, and neurons can be added to, and trained in, "
            f"plain FFNs alone."
        )
    up, output = block.name("up"), block.name("ffn_output")
    touched = beside(block, block.block[up].axes[0]) if up else ["its input"]
    if output is None or block.places[output].stored.split:
        touched = ["its output"]
    if touched:
        raise DeepenError(
            f"The neurons of block {index} of {name} do not stand by themselves ({touched[0]} "
            f"sees them all), so none can be added or trained alone."
        )
    return {
        logical: 0 if spec.role != "ffn_output" else 1
        for logical, spec in block.block.items()
        if spec.role in FFN and (spec.is_weight or spec.role != "ffn_output")
    }


def last_neurons(
    anatomy: Anatomy, shapes: Mapping[str, tuple[int, ...]], neurons: int, name: str
) -> Iterator[NeuronSlice]:
    """Find the last neurons of every FFN in the tensors of one layout.

    Args:
        anatomy: The layout: a checkpoint's, or that of transformers' model.
        shapes: Tensor name → shape, in that layout.
        neurons: How many of each FFN.
        name: What to call the model in an error.

    Raises:
        DeepenError: See ``neuron_tensors``.
    """
    for index, block in enumerate(anatomy.blocks):
        found: dict[str, tuple[int, list[int]]] = {}
        for logical, axis in neuron_tensors(block, index, name).items():
            place = block.places[logical]
            tensor = anatomy.family.name(index, place.suffix)
            stored_axis, positions = _positions(block, place, shapes[tensor], axis)
            found.setdefault(tensor, (stored_axis, []))[1].extend(positions[-neurons:])
        for tensor, (stored_axis, positions) in found.items():
            yield NeuronSlice(tensor, stored_axis, tuple(positions))


def _positions(
    block: BlockAnatomy, place: Place, shape: tuple[int, ...], axis: int
) -> tuple[int, list[int]]:
    """Return where the entries along an axis of a logical tensor stand in the stored one."""
    stored_axis = 1 - axis if place.stored.transposed and len(shape) == 2 else axis
    ones = [-1 if i == stored_axis else 1 for i in range(len(shape))]
    numbered = torch.arange(shape[stored_axis]).reshape(ones).expand(shape)
    logical = place.read(numbered, block.sizes)
    return stored_axis, (logical.select(1 - axis, 0) if logical.dim() == 2 else logical).tolist()
