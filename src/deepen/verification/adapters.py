"""Which layers of some blocks take adapters, in the words of peft's ``LoraConfig``."""

from collections.abc import Iterable

from torch import nn

from deepen.base.layers import called_modules
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.records.growth import read_lineage
from deepen.records.verification import PeftTargets

_RENAMED = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""What peft (0.21) takes for experts' own layers, of all blocks, in families whose experts lie in
one tensor; whatever else bears such a name there is named as a parameter, with its whole path."""


def new_block_targets(model: Model) -> PeftTargets:
    """Say how peft puts adapters on the new blocks of a grown model and on nothing else.

    Args:
        model: The opened checkpoint.

    Raises:
        DeepenError: deepen did not grow it.
    """
    lineage = read_lineage(model.source.config)
    if lineage is None:
        raise DeepenError(
            f"{model.source.name} was not grown by deepen, so nothing says which blocks are new; "
            f"--peft is for grown models."
        )
    return adapter_targets(model, lineage.new_blocks)


def adapter_targets(model: Model, blocks: Iterable[int]) -> PeftTargets:
    """Say how peft puts adapters on every linear layer, and every expert, of some blocks.

    Layers whose weights are read without calling them are left out: adapters there do nothing.

    Args:
        model: The opened checkpoint.
        blocks: Indices of blocks.

    Raises:
        DeepenError: These blocks have no layer that takes adapters.
    """
    from transformers.pytorch_utils import Conv1D

    memory, chosen = model.in_memory, sorted(blocks)
    has_banks = any(_banks(model, index) for index in range(model.depth))
    modules: dict[str, None] = {}
    parameters: list[str] = []
    transposed: set[bool] = set()
    for index in chosen:
        path = f"{model.blocks_path}.{index}"
        called = dict(called_modules(memory.module.get_submodule(path), model.family.preload))
        for name, layer in called.items():
            if not isinstance(layer, nn.Linear | Conv1D):
                continue
            if has_banks and name.rpartition(".")[2] in _RENAMED:
                parameters.append(f"{path}.{name}.weight")
            else:
                modules[name] = None
                transposed.add(isinstance(layer, Conv1D))
        banks = _banks(model, index)
        parameters += [f"{path}.{bank}" for bank in banks if bank.rpartition(".")[0] in called]
    if not modules and not parameters:
        raise DeepenError(f"The new blocks of {model.source.name} have no layer for adapters.")
    return PeftTargets(
        target_modules=list(modules),
        target_parameters=parameters,
        layers_to_transform=chosen,
        # A vision tower has layers too.
        layers_pattern=".".join(model.blocks_path.split(".")[-2 if model.family.tower else -1 :]),
        fan_in_fan_out=transposed == {True},
    )


def _banks(model: Model, index: int) -> list[str]:
    """Name the tensors of a block, as transformers holds it, that hold all experts' weights."""
    stored = model.in_memory.anatomy.blocks[index].stored
    return [s for s, spec in stored.items() if spec.bank and any(p.is_weight for p in spec.parts)]
