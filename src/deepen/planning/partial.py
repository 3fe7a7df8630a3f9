"""What training a part of every weight costs: low-rank adapters, or the last neurons of the FFNs.

These are what growing is compared with, at equal numbers of trained parameters. FLOPs are counted
as in ``deepen.planning.cost``: what the mathematics asks for. An adapter of rank r on a layer
[out, in] adds products of 2·r·(in + out) FLOPs, forward and for its weights' gradients; through the
adapter, gradients pass on to its input as well, but for layers that read what comes into the
lowest block with adapters, which has no gradient. Of neurons, only rows and columns of their own
have weight gradients, and in the lowest block they need nothing of attention and of what the FFN
reads. Both counts are exact where attention comes before the FFN; where both read the same stream,
they are too high by less than one FFN's pass.
"""

from collections.abc import Iterable, Sequence

import torch

from deepen.base.layers import LinearLayer, adaptable_layers, neuron_tensors
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.planning.cost import head_flops, shape_of


def lora_parameters(model: Model, rank: int, blocks: Iterable[int]) -> int:
    """Count the parameters of adapters of one rank on every linear layer of some blocks.

    Raises:
        DeepenError: The blocks have layers that take no adapters.
    """
    return rank * sum(_edges(layer) for index in blocks for layer in adaptable_layers(model, index))


def lora_rank(model: Model, parameters: int, blocks: Iterable[int]) -> int:
    """Return the largest rank at which adapters have at most so many parameters.

    Args:
        model: The model that is trained.
        parameters: How many they may have.
        blocks: The blocks that have adapters.

    Raises:
        DeepenError: Even rank 1 has more, or the blocks have layers that take no adapters.
    """
    return _largest(parameters, lora_parameters(model, 1, blocks), "adapters of rank 1", "adapters")


def neuron_parameters(model: Model, neurons: int) -> int:
    """Count the parameters of so many neurons in every FFN, biases of their inputs included.

    Raises:
        DeepenError: The FFNs are not of plain neurons.
    """
    return neurons * sum(_neuron_sizes(model, weights_alone=False))


def wider_neurons(model: Model, parameters: int) -> int:
    """Return how many neurons each FFN can be given with at most so many parameters in all.

    Raises:
        DeepenError: One neuron has more, or the FFNs are not of plain neurons.
    """
    each = neuron_parameters(model, 1)
    return _largest(parameters, each, "one neuron in every FFN", "neurons")


def _largest(parameters: int, each: int, one: str, many: str) -> int:
    """Divide, and refuse nothing."""
    if not each:
        raise DeepenError(f"The model has nothing that takes {many}.")
    if parameters < each:
        raise DeepenError(
            f"{parameters:,} parameters are too few for {one}, which has {each:,}; allow more."
        )
    return parameters // each


def lora_flops_per_token(
    model: Model, rank: int, blocks: Sequence[int], sequence_length: int
) -> float:
    """Return the model FLOPs of one token that trains adapters.

    Args:
        model: The model that is trained.
        rank: Rank of the adapters.
        blocks: The blocks that have them, at least one.
        sequence_length: Tokens in a sequence, S.

    Raises:
        DeepenError: The blocks have layers that take no adapters.
    """
    shape, lowest = shape_of(model), min(blocks)
    layers = {index: adaptable_layers(model, index) for index in set(blocks)}
    every = [layer for some in layers.values() for layer in some]
    first = [layer for layer in layers[lowest] if layer.first]
    reached, linear = model.depth - lowest, 2.0 * shape.active
    attention = 4.0 * sequence_length * shape.query
    base = model.depth * (linear + attention) + reached * (linear + 2 * attention)
    base -= sum(2.0 * layer.outputs * layer.inputs for layer in first)
    adapters = 6.0 * rank * sum(map(_edges, every))
    adapters -= 2.0 * rank * sum(layer.inputs for layer in first)
    return base + adapters + head_flops(shape)


def neuron_flops_per_token(model: Model, neurons: int, sequence_length: int) -> float:
    """Return the model FLOPs of one token that trains the last neurons of every FFN.

    Args:
        model: The model that is trained; these neurons are among its own.
        neurons: How many of each FFN.
        sequence_length: Tokens in a sequence, S.

    Raises:
        DeepenError: The FFNs are not of plain neurons.
    """
    shape, each = shape_of(model), _neuron_sizes(model, weights_alone=True)
    above = model.depth - 1 - next(index for index, size in enumerate(each) if size)
    linear, attention = 2.0 * shape.active, 4.0 * sequence_length * shape.query
    base = model.depth * (linear + attention) + above * (linear + 2 * attention) + 2.0 * shape.last
    return base + 2.0 * neurons * sum(each) + head_flops(shape)


def _edges(layer: LinearLayer) -> int:
    """Return the parameters of an adapter of rank 1."""
    return layer.inputs + layer.outputs


def _neuron_sizes(model: Model, *, weights_alone: bool) -> list[int]:
    """Return how many parameters one neuron has in each block; 0 in one without an FFN.

    Raises:
        DeepenError: The FFNs are not of plain neurons.
    """
    sizes = []
    for index, block in enumerate(model.anatomy.blocks):
        size = 0
        for name, axis in neuron_tensors(block, index, model.source.name).items():
            place = block.places[name]
            info = model.source.infos[model.family.name(index, place.suffix)]
            shape = place.read(torch.empty(info.shape, device="meta"), block.sizes).shape
            size += shape[1 - axis] if len(shape) == 2 else not weights_alone
        sizes.append(size)
    if not any(sizes):
        raise DeepenError(f"{model.source.name} has no FFN that deepen knows.")
    return sizes
