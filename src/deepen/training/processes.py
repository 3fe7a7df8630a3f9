"""Which process this is, as torchrun and accelerate tell it."""

import os


def rank() -> int:
    """Return this process's number among all."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return this process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharded() -> bool:
    """Whether the launcher divides the weights among the processes."""
    asked = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(os.environ.get(name, "false").lower() == "true" for name in asked)


def wait_for_all(*, on_gpu: bool) -> None:
    """Wait until every process has come here.

    Args:
        on_gpu: Whether GPUs train.
    """
    if processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=not on_gpu).wait_for_everyone()
