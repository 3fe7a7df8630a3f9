"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft, and what a weight is once they are merged.

An adapter of rank r adds alpha / r · B·A to a frozen weight [out, in]; B starts at zero, A as in
peft, but from the recipe's own seed.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from deepen.base.layers import adaptable_layers
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.common.seeds import generator_for
from deepen.training.recipe import LoraConfig

_ADAPTER = "deepen"
"""What peft is told to call the adapters."""
_BASE = "base_layer"
"""What peft calls the layer that an adapter sits on."""


def check_peft() -> None:
    """Refuse adapters where peft is not installed.

    Raises:
        DeepenError: It is not.
    """
    if find_spec("peft") is None:
        raise DeepenError("training.lora needs peft: pip install 'deepen[lora]'.")


def _alpha(config: LoraConfig) -> float:
    """Return alpha, by default twice the rank."""
    return 2.0 * config.rank if config.alpha is None else config.alpha


def add_adapters(
    module: Any,  # noqa: ANN401 (transformers' classes have no types)
    model: Model,
    config: LoraConfig,
    blocks: Iterable[int],
    seed: int,
) -> None:
    """Put float32 adapters on the linear layers of some blocks; they alone have gradients.

    Args:
        module: Transformers' model, changed in place.
        model: The checkpoint that it was loaded from.
        config: What the recipe says.
        blocks: The blocks that get adapters.
        seed: Of the adapters' first values.

    Raises:
        DeepenError: peft is missing, or the blocks have layers that take no adapters.
    """
    check_peft()
    from peft import LoraConfig as Settings
    from peft import inject_adapter_in_model

    paths = [layer.path for index in blocks for layer in adaptable_layers(model, index)]
    if not paths:
        raise DeepenError(
            f"The blocks of {model.source.name} that training.lora names have no layer that takes "
            f"adapters; train whole blocks instead."
        )
    # Where peft finds the config of a mixture of experts, it may take a dense FFN's layers for
    # those of experts in all blocks; the list of blocks has no config.
    has_experts = any(
        spec.bank for b in model.in_memory.anatomy.blocks for spec in b.stored.values()
    )
    host = module.get_submodule(model.blocks_path) if has_experts else module
    outside = f"{model.blocks_path}." if has_experts else ""
    transposed = not any(isinstance(module.get_submodule(path), nn.Linear) for path in paths)
    settings = Settings(
        r=config.rank,
        lora_alpha=_alpha(config),  # type: ignore[arg-type]
        target_modules="|".join(re.escape(path.removeprefix(outside)) for path in paths),
        fan_in_fan_out=transposed,
    )
    # peft draws values of its own, which are replaced below.
    try:
        with torch.random.fork_rng([]):
            inject_adapter_in_model(settings, host, adapter_name=_ADAPTER)
    except ValueError as error:  # it refuses some layers of some families by name
        raise DeepenError(
            f"peft puts no adapters on {model.source.name} ({error}); train whole blocks instead."
        ) from None
    for path in paths:
        down = module.get_parameter(_name(path, "A"))
        up = module.get_parameter(_name(path, "B"))
        down.data, up.data = down.data.float(), up.data.float()
        down.data.copy_(_start(down.shape, f"{seed} {path}"))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(f".lora_A.{_ADAPTER}." in name or f".lora_B.{_ADAPTER}." in name)


def merged(
    model: Model, config: LoraConfig, state: Mapping[str, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """Say how to make every tensor whose layer has an adapter.

    Args:
        model: The checkpoint that was trained.
        config: What the recipe says.
        state: The module's parameters after training, adapters among them.

    Returns:
        The weight's name in the module as it was → a function that returns it in float32.
    """
    ending = _name("", "A")
    paths = [name.removesuffix(ending) for name in state if name.endswith(ending)]
    scale = _alpha(config) / config.rank
    return {
        f"{path}.weight": lambda path=path: _merged(model, scale, path, state)  # type: ignore[misc]
        for path in paths
    }


def adapter_down(layer: Any) -> nn.Linear:  # noqa: ANN401 (peft's classes have no types)
    """Return A of a layer that has an adapter, which maps the layer's input to the rank."""
    return layer.lora_A[_ADAPTER]


def plain(name: str) -> str:
    """Return the name that a frozen tensor had before its layer was given an adapter."""
    return name.replace(f".{_BASE}.", ".")


def _merged(model: Model, scale: float, path: str, state: Mapping[str, Tensor]) -> Tensor:
    """Add an adapter to the stored weight.

    Raises:
        RuntimeError: The frozen weight has changed in memory.
    """
    stored = model.in_memory.load(f"{path}.weight")
    frozen, down, up = (
        state[name].detach().cpu()
        for name in (f"{path}.{_BASE}.weight", _name(path, "A"), _name(path, "B"))
    )
    if not torch.equal(frozen, stored.to(frozen.dtype)):
        raise RuntimeError(f"{path}.weight is frozen, but training has changed it")
    product = scale * (up.float() @ down.float())
    # A Conv1D's weight is [in, out].
    is_linear = isinstance(model.in_memory.module.get_submodule(path), nn.Linear)
    return stored.float() + (product if is_linear else product.T)


def _name(path: str, letter: str) -> str:
    """Return the name of half an adapter's weight."""
    return f"{path}.lora_{letter}.{_ADAPTER}.weight"


def _start(shape: torch.Size, what: str) -> Tensor:
    """Draw A as peft does, uniform within 1 / √in, from nothing but what it is for."""
    return nn.init.kaiming_uniform_(
        torch.empty(shape), a=math.sqrt(5), generator=generator_for(what)
    )
