"""Load a checkpoint for training: what is frozen as stored, what is trained in float32."""

from typing import Any

import torch

from deepen.base.anatomy import FAMILIES
from deepen.base.checkpoint import FolderSource
from deepen.base.model import Model
from deepen.base.streamed import in_memory, load
from deepen.common.errors import DeepenError
from deepen.training.engine.arguments import precision_of
from deepen.training.engine.checkpointing import checkpoint_blocks
from deepen.training.freeze import Trains, freeze
from deepen.training.recipe import DataConfig, TrainingConfig


def check_length(base: Model, data: DataConfig) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        DeepenError: They are too long.
    """
    positions = base.positions
    if positions is not None and data.sequence_length > positions:
        raise DeepenError(
            f"data.sequence_length={data.sequence_length} is longer than the {positions} positions "
            f"of {base.source.name}; lower it."
        )


def load_model(base: Model, trains: Trains, training: TrainingConfig) -> Any:  # noqa: ANN401 (transformers' classes have no types)
    """Load, freeze and prepare a model.

    In float32 the whole model is float32. In bfloat16 only what is trained is, so that small
    updates are not lost; the frozen rest is bfloat16 and takes half the memory.

    Args:
        base: The opened checkpoint.
        trains: What trains.
        training: The recipe's part.
    """
    from transformers import AutoModelForCausalLM

    assert isinstance(base.source, FolderSource)
    precision = precision_of(training)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base.source.folder, dtype=getattr(torch, precision)
    )
    model.config.use_cache = False
    freeze(model, trains, FAMILIES[base.family.model_type])
    if precision != "float32":
        _to_float32(model, base)
    if training.activation_checkpointing:
        blocks = model.get_submodule(base.blocks_path)
        checkpoint_blocks(blocks, _lowest(trains, base))
    return model


def _to_float32(model: Any, base: Model) -> None:  # noqa: ANN401
    """Load what is trained again, in float32, so that no stored bit is lost."""
    memory = in_memory(base)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Under FSDP only the first process holds data until the model is divided.
        stored = parameter if parameter.is_meta else load(base, memory, name).to(parameter.device)
        parameter.data = stored.to(torch.float32)


def _lowest(trains: Trains, base: Model) -> int:
    """Return the lowest block that gradients reach."""
    if trains.everything or "embeddings" in trains.outside:
        return 0
    return min(trains.blocks, default=base.depth)
