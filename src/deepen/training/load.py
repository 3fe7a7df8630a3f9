"""Load a checkpoint for training: what is frozen as stored, what is trained in float32."""

from typing import Any

import psutil
import torch

from deepen.base.checkpoint import FolderSource
from deepen.base.memory import load_pretrained
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.planning.cost import shape_of
from deepen.planning.partial import lora_parameters
from deepen.training.engine.arguments import fuses_loss, micro_batches, on_gpu, precision_of
from deepen.training.engine.checkpointing import checkpoint_blocks
from deepen.training.freeze import Trains, freeze
from deepen.training.processes import processes
from deepen.training.recipe import DataConfig, Recipe, Stage, TrainingConfig


def check_length(model: Model, data: DataConfig) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        DeepenError: They are too long.
    """
    positions = model.positions
    if positions is not None and data.sequence_length > positions:
        raise DeepenError(
            f"data.sequence_length={data.sequence_length} is longer than the {positions} positions "
            f"of {model.source.name}; lower it."
        )


def check_generation(model: Model) -> None:
    """Refuse a generation config beside which transformers loads no model.

    Raises:
        DeepenError: It is one.
    """
    from transformers import GenerationConfig

    assert isinstance(model.source, FolderSource)
    try:
        GenerationConfig.from_pretrained(model.source.folder)
    except OSError:  # none, or one that transformers does without
        return
    except Exception as error:  # many types, for whatever stands in the file
        reason = " ".join(str(error).split())[:100].rstrip(".") or type(error).__name__
        raise DeepenError(
            f"generation_config.json of {model.source.name} cannot be read ({reason}), and "
            f"transformers loads no model beside it; correct it, or remove it."
        ) from None


def check_memory(model: Model, trains: Trains, recipe: Recipe, stage: Stage) -> None:
    """Refuse a batch, or adapters, that the device has no memory for whatever else it holds.

    Counted is what no way to train goes without: the input of every block that gradients reach,
    the logits in float32 unless the loss is fused, and adapters with gradients and two moments.

    Raises:
        DeepenError: They take more than there is.
    """
    training, shape = recipe.training, shape_of(model)
    micro, _ = micro_batches(training, processes())
    kept = shape.hidden * max(1, model.depth - lowest_trained(trains, model.depth))
    number = 2 if precision_of(training) == "bfloat16" else 4
    logits = 4 * shape.vocabulary if stage == "cpt" and not fuses_loss(training, stage) else 0
    needed = micro * recipe.data.sequence_length * (number * kept + logits)
    key = f"training.micro_batch_size (here {micro:,}) or data.sequence_length"
    if (
        trains.lora
        and (
            adapters := 16 * lora_parameters(model, trains.lora.rank, trains.blocks) // processes()
        )
        > needed
    ):
        needed, key = adapters, "training.lora.rank"
    there = torch.cuda.mem_get_info()[1] if on_gpu(training) else psutil.virtual_memory().total
    if needed > there:
        raise DeepenError(
            f"Training {model.source.name} so takes at least {needed / 1e9:,.0f} GB of memory, and "
            f"the device has {there / 1e9:,.0f} GB; lower {key}."
        )


def load_module(model: Model, trains: Trains, training: TrainingConfig) -> Any:  # noqa: ANN401 (transformers' classes have no types)
    """Load, freeze and prepare a checkpoint's module.

    In float32 the whole module is float32. In bfloat16 only what is trained is, so that small
    updates are not lost; the frozen rest is bfloat16 and takes half the memory.

    Args:
        model: The opened checkpoint.
        trains: What trains.
        training: The recipe's part.
    """
    assert isinstance(model.source, FolderSource)
    precision = precision_of(training)
    module = load_pretrained(model.source, getattr(torch, precision))
    module.config.use_cache = False
    freeze(module, trains, model.anatomy.table)
    if precision != "float32":
        _to_float32(module, model)
    if training.activation_checkpointing:
        blocks = module.get_submodule(model.blocks_path)
        checkpoint_blocks(blocks, lowest_trained(trains, model.depth))
    return module


def _to_float32(module: Any, model: Model) -> None:  # noqa: ANN401
    """Load what is trained again, in float32, so that no stored bit is lost."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # Under FSDP only the first process holds data until the model is divided.
        stored = parameter if parameter.is_meta else model.in_memory.load(name)
        parameter.data = stored.to(parameter.device, torch.float32)


def lowest_trained(trains: Trains, depth: int) -> int:
    """Return the lowest block that gradients reach."""
    if trains.everything or "embeddings" in trains.outside:
        return 0
    return min(trains.blocks, default=depth)
