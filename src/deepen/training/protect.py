"""Train without touching what an old text needs: gradient projection memory (arXiv 2103.09762).

On the old text the input of a linear layer lies almost wholly in a few directions U [in, k]. An
update that maps these to zero changes hardly anything there, and so after every step the weight W
[out, in] is put back to where it began in them: W ← W - (W U - W₀ U) Uᵀ. A new block that begins by
writing nothing writes through its output projections alone, and so it is enough to do this to them.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from deepen.base.layers import linear_layers
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.planning.cost import reading_flops_per_token
from deepen.records.growth import read_lineage
from deepen.records.training import ProtectRecord
from deepen.training.engine.trainers import collate
from deepen.training.freeze import Trains
from deepen.training.lora import adapter_down
from deepen.training.neurons import DividedLinear
from deepen.training.recipe import DataConfig, Recipe


def main_directions(second_moment: Tensor, share: float) -> Tensor:
    """Return the fewest orthonormal directions ``[n, k]`` that hold a share of a mean square.

    Args:
        second_moment: Of an input, about zero, ``[n, n]``; all of it zero has no direction.
        share: Between 0 and 1.
    """
    values, vectors = torch.linalg.eigh(second_moment)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    held = values.cumsum(0)
    if not held[-1] > 0:
        return vectors[:, :0]
    return vectors[:, : int((held < share * held[-1]).sum()) + 1].contiguous()


def put_back(weight: Tensor, directions: Tensor, start: Tensor) -> None:
    """Undo in place what an update did in some directions: W ← W - (W U - W₀ U) Uᵀ.

    Args:
        weight: W, ``[out, in]``.
        directions: U, orthonormal, ``[in, k]``.
        start: W₀ U, ``[out, k]``.
    """
    weight.sub_((weight @ directions - start) @ directions.T)


@dataclass
class _Layer:
    """What trains of a linear layer, and what it is multiplied with."""

    module: nn.Module
    """Called with the layer's input."""
    parameter: Tensor
    """``[out, in]``, or ``[in, out]`` if transposed."""
    transposed: bool = False
    """How the parameter lies."""
    adapter: bool = False
    """Whether it stands beside a frozen weight, so that it began, as it were, at zero."""
    second_moment: Tensor = field(init=False)
    """Sum over tokens, ``[in, in]`` in float32."""

    @property
    def weight(self) -> Tensor:
        """``[out, in]``, a view."""
        data = self.parameter.detach()
        return data.T if self.transposed else data

    def watch(self) -> Any:  # noqa: ANN401 (torch's handle)
        """Add up the second moment of all inputs from now on; return how to end that."""
        width = self.weight.shape[1]
        self.second_moment = torch.zeros(width, width, device=self.parameter.device)

        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            given = args[0].detach().flatten(0, -2).float()[:, -width:]
            self.second_moment.addmm_(given.T, given)

        return self.module.register_forward_pre_hook(add)


class Protection(TrainerCallback):
    """Puts layers back after every step."""

    def __init__(self, layers: Sequence[_Layer], share: float) -> None:
        """Take the directions from what the layers have seen.

        Args:
            layers: The layers, after a pass.
            share: Share of the mean square to protect.
        """
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer in layers:
            directions = main_directions(layer.second_moment, share)
            del layer.second_moment
            start = layer.weight @ directions
            self._kept.append((layer.weight, directions, start * (not layer.adapter)))
        self.put_back()

    @property
    def directions(self) -> float:
        """Mean share of a layer's directions that are protected."""
        return fmean(directions.shape[1] / len(directions) for _, directions, _ in self._kept)

    def put_back(self) -> None:
        """Undo what was done in protected directions."""
        for weight, directions, start in self._kept:
            put_back(weight, directions, start)

    def on_optimizer_step(self, *args: object, **kwargs: object) -> None:
        """Follow the optimizer."""
        self.put_back()


def old_text(recipe: Recipe) -> DataConfig | None:
    """Return the text to protect as data that stand alone; ``None`` if there is none."""
    asked = recipe.training.protect
    if asked is None:
        return None
    own = {"path": asked.path, "mix": [], "name": None, "revision": None, "streaming": False}
    return recipe.data.model_copy(update=own)


def protect(
    engine: Any,  # noqa: ANN401 (Trainer has no types)
    recipe: Recipe,
    model: Model,
    trains: Trains,
    text: Any,  # noqa: ANN401
) -> ProtectRecord:
    """Let an engine's module read a text, and the engine leave its directions alone.

    Args:
        engine: The engine with the whole module on its device, before training.
        recipe: A resolved recipe that asks for it.
        model: The checkpoint.
        trains: What trains.
        text: Sequences of the old text.

    Raises:
        DeepenError: The module is spread over processes, or has layers that cannot be protected.
    """
    asked, started = recipe.training.protect, time.perf_counter()
    assert asked is not None
    if engine.is_fsdp_enabled or engine.is_deepspeed_enabled:
        raise DeepenError(
            "training.protect needs whole weights in every process, and FSDP and DeepSpeed divide "
            "them; launch without, or leave it out."
        )
    layers = list(_layers(engine.model, model, trains))
    if not layers:
        raise DeepenError("training.protect finds no linear layer that trains; leave it out.")
    length = recipe.data.sequence_length
    count = min(max(1, asked.max_tokens // length), len(text))
    chosen = torch.linspace(0, len(text) - 1, count).long().tolist()
    handles = [layer.watch() for layer in layers]
    try:
        with _reading(engine):
            size = engine.args.per_device_train_batch_size
            for at in range(0, count, size):
                batch = collate([text[index] for index in chosen[at : at + size]])
                engine.model(batch["input_ids"].to(engine.args.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    protection = Protection(layers, asked.share)
    engine.add_callback(protection)
    return ProtectRecord(
        layers=len(layers),
        tokens=count * length,
        directions=protection.directions,
        seconds=time.perf_counter() - started,
        flops=reading_flops_per_token(model, model.depth, length) * count * length,
    )


def _layers(module: Any, model: Model, trains: Trains) -> Iterator[_Layer]:  # noqa: ANN401
    """Find the layers whose updates must leave directions alone.

    Raises:
        DeepenError: A block has none that can.
    """
    lineage = read_lineage(model.source.config)
    new = set(lineage.new_blocks if lineage else [])
    for index in trains.blocks:
        layers = linear_layers(model, index)
        outputs = [module.get_submodule(layer.path) for layer in layers if layer.last]
        whole = not (trains.lora or trains.neurons)
        if whole and index in new and not outputs:
            raise DeepenError(
                f"Block {index} of {model.source.name} writes through norms, which "
                f"training.protect does not hold; leave it out, or train adapters."
            )
        silent = whole and index in new and not any(layer.weight.any() for layer in outputs)
        for layer in layers:
            found = module.get_submodule(layer.path)
            if trains.lora:
                if layer.called:
                    down = adapter_down(found)
                    yield _Layer(down, down.weight, adapter=True)
            elif trains.neurons:
                # What the other neurons compute is theirs alone, and these write it.
                if isinstance(found, DividedLinear) and found.along == "inputs":
                    yield _Layer(found, found.trained, found.transposed)
            elif layer.last or not silent:
                if not (layer.called or layer.last):
                    raise DeepenError(
                        f"Block {index} of {model.source.name} reads the weights of "
                        f"{layer.path!r} without calling it, which training.protect does not "
                        f"hold; leave it out, or train adapters."
                    )
                yield _Layer(found, found.weight, not isinstance(found, nn.Linear))


@contextmanager
def _reading(engine: Any) -> Iterator[None]:  # noqa: ANN401
    """Compute with the engine's precision, without gradients and dropout."""
    training = engine.model.training
    engine.model.eval()
    kind = engine.args.device.type
    try:
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=engine.args.bf16):
            yield
    finally:
        engine.model.train(training)
