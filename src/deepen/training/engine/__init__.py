"""transformers' Trainer and TRL's SFTTrainer, with what they do not do by themselves."""
