"""Compute what is not there yet, in the order and the batches in which the run will read it."""

from collections.abc import Callable, Sequence

from torch import Tensor

from deepen.common.progress import Progress
from deepen.training.trunk.data import WithStates

Compute = Callable[[Sequence[int]], Tensor]
"""Runs the trunk on sequences of the data; returns their states, [sequences, tokens, hidden]."""


def fill(
    data: WithStates, batches: Sequence[Sequence[int]], compute: Compute, progress: Progress
) -> int:
    """Compute the states that some batches lack.

    Processes that do so at once share the work: each takes the batches that no other has claimed,
    and waits at the end for those that others have.

    Args:
        data: The sequences and the files of their states.
        batches: Sequences that are computed together.
        compute: Runs the trunk.
        progress: Called with the finished share.

    Returns:
        How many states were computed here.

    Raises:
        OSError: The disk is full or broken.
    """
    computed, left = 0, list(batches)
    for wait in (False, True):
        others: list[Sequence[int]] = []
        for number, batch in enumerate(left, start=1):
            missing = data.missing(batch)
            if missing:
                states, index = data.place(missing[0])
                with states.claimed(index, wait=wait) as claimed:
                    if claimed:
                        computed += _compute(data, batch, compute)
                    else:
                        others.append(batch)
            share = (len(batches) - len(left) + number - len(others)) / len(batches)
            progress(f"trunk: {computed:,} sequences computed", share)
        left = others
    return computed


def _compute(data: WithStates, batch: Sequence[int], compute: Compute) -> int:
    """Compute a batch, whole, so that a product is of the shape that it has in training."""
    missing = data.missing(batch)  # another process may have been faster
    if not missing:
        return 0
    computed = dict(zip(batch, compute(batch), strict=True))
    for index in missing:
        states, own = data.place(index)
        states.write(own, computed[index])
    return len(missing)
