"""TRL's SFTTrainer with the shared overrides; importing this imports TRL."""

from trl.trainer.sft_trainer import SFTTrainer

from deepen.training.engine.trainers import Overrides


class SftTrainer(Overrides, SFTTrainer):
    """TRL's engine for examples that are tokenised already."""
