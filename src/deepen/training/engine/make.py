"""Make the engine of a stage: transformers' Trainer for pre-training, TRL's for fine-tuning."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepen.common.progress import Progress
from deepen.training.engine.arguments import arguments, micro_batches, tensorboard
from deepen.training.engine.rates import Rates
from deepen.training.engine.schedule import Schedule
from deepen.training.processes import processes
from deepen.training.recipe import Recipe, Stage
from deepen.training.run_folder import RunFolder

if TYPE_CHECKING:
    from deepen.training.engine.trainers import Part


def make_engine(
    recipe: Recipe,
    stage: Stage,
    module: Any,  # noqa: ANN401 (transformers' classes have no types)
    data: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    schedule: Schedule,
    rates: Rates | None,
    progress: Progress,
    callbacks: Sequence[Any] = (),
    part: "Part | None" = None,
) -> Any:  # noqa: ANN401
    """Make an engine that is ready to train.

    Args:
        recipe: The resolved recipe.
        stage: Which engine.
        module: The model, frozen where it is not to be trained.
        data: Packed sequences or examples.
        tokenizer: The model's.
        schedule: Which sequences each step has.
        rates: Learning rates that differ from the recipe's.
        progress: Called whenever a loss is logged.
        callbacks: transformers' callbacks, called before deepen's own.
        part: What it does of a run in phases; by default all there is to do.
    """
    from transformers import PrinterCallback

    from deepen.training.engine.fsdp import keep_losses_exact
    from deepen.training.engine.saving import Agrees

    folder = RunFolder.of(recipe)
    micro, accumulated = micro_batches(recipe.training, processes())
    shared = arguments(recipe.training, stage, schedule.steps, recipe.seed, folder.checkpoints) | {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
    }
    make = _cpt if stage == "cpt" else _sft
    engine = make(recipe, shared, module, data, tokenizer, [*callbacks])
    keep_losses_exact(engine.accelerator)
    engine.remove_callback(PrinterCallback)
    if callbacks and engine.accelerator.num_processes > 1:
        engine.add_callback(Agrees(engine.accelerator))
    if tensorboard(recipe.training):
        from transformers.integrations.integration_utils import TensorBoardCallback

        callback: Any = TensorBoardCallback()
        callback.logging_dir = str(folder.tensorboard)
        engine.add_callback(callback)
    engine.prepare(schedule, rates, stage, progress, part)
    return engine


def _cpt(
    recipe: Recipe,
    shared: dict[str, Any],
    module: Any,  # noqa: ANN401
    data: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    callbacks: list[Any],
) -> Any:  # noqa: ANN401
    """Make transformers' engine."""
    from transformers import TrainingArguments

    from deepen.training.engine.fsdp import cpu_fsdp_allowed
    from deepen.training.engine.trainers import CptTrainer, collate

    # A trunk's states stand beside the tokens, and no model's own code asks for them.
    args = TrainingArguments(**shared, remove_unused_columns=False)
    # Several GPUs without a launcher: one is used, instead of the slow DataParallel.
    args._n_gpu = min(args.n_gpu, 1)
    with cpu_fsdp_allowed():
        return CptTrainer(
            module, args, data_collator=collate, train_dataset=data, callbacks=callbacks
        )


def _sft(
    recipe: Recipe,
    shared: dict[str, Any],
    module: Any,  # noqa: ANN401
    data: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    callbacks: list[Any],
) -> Any:  # noqa: ANN401
    """Make TRL's engine."""
    from trl.trainer.sft_config import SFTConfig

    from deepen.training.engine.fsdp import cpu_fsdp_allowed
    from deepen.training.engine.sft import SftTrainer

    args = SFTConfig(
        **shared,
        max_length=recipe.data.sequence_length,
        packing=recipe.data.packing,
        # The examples are tokenised and labelled already.
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    args._n_gpu = min(args.n_gpu, 1)
    with cpu_fsdp_allowed():
        return SftTrainer(
            module, args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks
        )
