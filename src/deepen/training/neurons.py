"""Train single neurons: each weight of an FFN is divided into a frozen and a trained part.

Both parts are multiplied for themselves, so that only what trains has gradients, weight decay and
optimizer states.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from deepen.base.layers import NeuronSlice, ffn_width, last_neurons
from deepen.base.model import Model
from deepen.common.errors import DeepenError


class DividedLinear(nn.Module):
    """A linear layer of which some outputs, or some inputs, are trained."""

    def __init__(
        self,
        layer: Any,  # noqa: ANN401 (nn.Linear or transformers' Conv1D)
        along: Literal["outputs", "inputs"],
        positions: Sequence[int],
        start: Mapping[str, Tensor],
    ) -> None:
        """Divide a layer.

        Args:
            layer: The layer; its weight is ``[out, in]``, or ``[in, out]`` for a Conv1D.
            along: What ``positions`` count.
            positions: What trains; of inputs the last ones.
            start: ``weight``, and ``bias`` where outputs are trained and have one: the trained
                part in float32, laid out as the layer's own.
        """
        super().__init__()
        self.transposed = not isinstance(layer, nn.Linear)
        self.along = along
        width = layer.weight.shape[(along == "inputs") != self.transposed]
        self._runs = _runs(positions, width)
        rest = sorted({*range(width)} - {*positions})
        axis = int((along == "inputs") != self.transposed)
        self.frozen = _frozen(layer.weight, rest, axis)
        self.trained = nn.Parameter(start["weight"].to(layer.weight.device))
        self.frozen_bias: nn.Parameter | None = None
        self.trained_bias: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if layer.bias is not None and along == "outputs":
            self.frozen_bias = _frozen(layer.bias, rest, 0)
            self.trained_bias = nn.Parameter(start["bias"].to(layer.bias.device))
        elif layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, given: Tensor) -> Tensor:
        """Map ``[…, in]`` to ``[…, out]``."""
        parts = self.frozen, self.trained
        frozen, trained = (part.T if self.transposed else part for part in parts)
        if self.along == "inputs":
            # Of inputs the last ones train.
            rest, some = given.split([frozen.shape[1], trained.shape[1]], -1)
            return linear(rest, frozen, self.bias) + linear(some, trained)
        lengths = {t: [n for trains, n in self._runs if trains is t] for t in (True, False)}
        made = {
            True: iter(linear(given, trained, self.trained_bias).split(lengths[True], -1)),
            False: iter(linear(given, frozen, self.frozen_bias).split(lengths[False], -1)),
        }
        return torch.cat([next(made[trains]) for trains, _ in self._runs], -1)


def _runs(positions: Sequence[int], width: int) -> list[tuple[bool, int]]:
    """Return the stretches along an axis: whether each one trains, and its length."""
    chosen, runs = set(positions), list[tuple[bool, int]]()
    for position in range(width):
        trains = position in chosen
        if runs and runs[-1][0] == trains:
            runs[-1] = trains, runs[-1][1] + 1
        else:
            runs.append((trains, 1))
    return runs


def _frozen(parameter: Tensor, positions: Sequence[int], axis: int) -> nn.Parameter:
    """Copy the part of a parameter that stays as it is."""
    index = torch.tensor(positions, device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(axis, index), requires_grad=False)


def check_neurons(model: Model, neurons: int) -> None:
    """Refuse a model whose FFNs cannot be trained neuron by neuron.

    Raises:
        DeepenError: They cannot, or have no more neurons than are to be trained.
    """
    if neurons >= (width := ffn_width(model)):
        raise DeepenError(
            f"training.neurons={neurons} leaves none of the {width} neurons of "
            f"{model.source.name}'s FFNs as they are; train fewer."
        )


def divide_neurons(module: Any, model: Model, neurons: int) -> None:  # noqa: ANN401
    """Let the last neurons of every FFN train, in float32, and nothing else.

    Args:
        module: Transformers' model, frozen, changed in place.
        model: The checkpoint that it was loaded from.
        neurons: How many of each FFN.

    Raises:
        DeepenError: The FFNs are not of plain neurons.
    """
    by_layer: dict[str, dict[str, NeuronSlice]] = {}
    for part in _slices(model, neurons):
        path, _, leaf = part.name.rpartition(".")
        by_layer.setdefault(path, {})[leaf] = part
    for path, parts in by_layer.items():
        layer, weight = module.get_submodule(path), parts["weight"]
        start = {leaf: _part(model.in_memory.load(p.name), p) for leaf, p in parts.items()}
        if layer.weight.is_meta:  # under FSDP, in all processes but the first
            start = {leaf: tensor.to("meta") for leaf, tensor in start.items()}
        transposed = not isinstance(layer, nn.Linear)
        along: Literal["outputs", "inputs"] = (
            "inputs" if (weight.axis == 1) != transposed else "outputs"
        )
        parent, _, name = path.rpartition(".")
        divided = DividedLinear(layer, along, weight.positions, start)
        setattr(module.get_submodule(parent), name, divided)


def joined(
    model: Model, neurons: int, state: Mapping[str, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """Say how to make every tensor of which a part was trained.

    Args:
        model: The checkpoint that was trained.
        neurons: How many neurons of each FFN were.
        state: The module's parameters after training.

    Returns:
        The tensor's name in the module as it was → a function that returns it, in float32 at least.
    """
    return {
        part.name: lambda part=part: _joined(model, part, state)  # type: ignore[misc]
        for part in _slices(model, neurons)
    }


def _slices(model: Model, neurons: int) -> list[NeuronSlice]:
    """Find the neurons in transformers' model."""
    memory = model.in_memory
    return list(last_neurons(memory.anatomy, memory.shapes, neurons, model.source.name))


def _part(tensor: Tensor, part: NeuronSlice) -> Tensor:
    """Copy the trained part of a tensor."""
    return tensor.index_select(part.axis, torch.tensor(part.positions)).float()


def _joined(model: Model, part: NeuronSlice, state: Mapping[str, Tensor]) -> Tensor:
    """Put the trained part into the stored tensor.

    Raises:
        RuntimeError: The frozen part has changed in memory.
    """
    path, _, leaf = part.name.rpartition(".")
    ending = "_bias" if leaf == "bias" else ""
    trained, frozen = (
        state[f"{path}.{kind}{ending}"].detach().cpu() for kind in ("trained", "frozen")
    )
    stored = model.in_memory.load(part.name)
    rest = sorted({*range(stored.shape[part.axis])} - {*part.positions})
    kept = stored.index_select(part.axis, torch.tensor(rest))
    if not torch.equal(frozen, kept.to(frozen.dtype)):
        raise RuntimeError(f"{part.name} is frozen in part, but training has changed that part")
    whole = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
    return whole.index_copy_(part.axis, torch.tensor(part.positions), trained.to(whole.dtype))
