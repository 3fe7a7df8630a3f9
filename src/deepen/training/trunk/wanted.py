"""Whether a run keeps its trunk's states."""

import shutil
from pathlib import Path

from deepen.common.errors import DeepenError
from deepen.training.engine.schedule import Schedule
from deepen.training.processes import sharded
from deepen.training.recipe import Recipe, Stage
from deepen.training.trunk.bypass import NotKeptError

_LEAST_SHARE_OF_BLOCKS = 0.25
_MOST_SHARE_OF_DISK = 0.2
_SLACK_BYTES = 2**28


def check_possible(recipe: Recipe, stage: Stage, below: int) -> bool:
    """Say whether a run has a trunk that can be kept.

    Args:
        recipe: The resolved recipe.
        stage: The stage.
        below: Number of blocks below the lowest one that gradients reach.

    Raises:
        DeepenError: It has not, and the recipe insists on it.
    """
    asked = recipe.training.trunk_cache
    if asked is False:
        return False
    reason = None
    if stage == "sft":
        reason = "it is for pre-training, where all sequences are of one length"
    elif not below:
        reason = "gradients reach block 0, so there is nothing frozen below"
    elif sharded():
        reason = "no process holds the frozen blocks under FSDP and DeepSpeed"
    if reason and asked is True:
        raise DeepenError(
            f"training.trunk_cache cannot be true: {reason}; leave it out, or set it to auto."
        )
    return reason is None


def pays(recipe: Recipe, below: int, depth: int, schedule: Schedule) -> bool:
    """Whether keeping the states is likely to save time, or is asked for.

    It is where many blocks are passed by and a state is used again: by a second pass over the data,
    or by another run that shares the folder of the tokens.
    """
    if recipe.training.trunk_cache is True:
        return True
    again = len(schedule.distinct) < len(schedule.order) or recipe.data.cache is not None
    return again and below >= _LEAST_SHARE_OF_BLOCKS * depth


def check_room(recipe: Recipe, folder: Path, needed: int) -> None:
    """Refuse states that would crowd a disk.

    Args:
        recipe: The recipe.
        folder: Where they would lie.
        needed: Bytes of those that are not there yet.

    Raises:
        NotKeptError: There is too little room.
    """
    free = shutil.disk_usage(folder).free
    insists = recipe.training.trunk_cache is True
    room = free - _SLACK_BYTES if insists else int(_MOST_SHARE_OF_DISK * free)
    if needed > room:
        share = "" if insists else f", of which it may take {room / 1e9:.2f} GB"
        raise NotKeptError(
            f"it needs {needed / 1e9:.2f} GB, and the disk of {str(folder)!r} has "
            f"{free / 1e9:.2f} GB free{share}"
        )
