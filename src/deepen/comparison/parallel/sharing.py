"""Share a machine out among processes: its GPUs in turn, its threads equally."""

import os
from collections.abc import Mapping, Sequence

Environment = Mapping[str, str]
"""Environment variables that a process gets beside its parent's."""
THREADS = "OMP_NUM_THREADS"
"""The variable that torch and the BLAS libraries take their number of threads from."""


def slots(
    jobs: int, devices: Sequence[str], threads: int, given: Environment = os.environ
) -> list[Environment]:
    """Share a machine out among processes.

    Args:
        jobs: Number of processes.
        devices: Names of the GPUs, as CUDA_VISIBLE_DEVICES has them; dealt out in turn.
        threads: Number of threads that one process alone would compute with.
        given: Environment variables that are there already.

    Returns:
        The environment of each.
    """
    alike: dict[str, str] = {}
    if jobs > 1:
        # Threads that wait by spinning take their cores from the other processes.
        passive = given.get("OMP_WAIT_POLICY", "PASSIVE")
        alike = {THREADS: str(max(1, threads // jobs)), "OMP_WAIT_POLICY": passive}
    if not devices:
        return [alike] * jobs
    return [alike | {"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(jobs)]


def gpus(count: int, given: Environment = os.environ) -> list[str]:
    """Name the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them.

    Args:
        count: How many there are.
        given: Environment variables.
    """
    names = [name.strip() for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    named = [name for name in names if name]
    return named[:count] if named else [str(i) for i in range(count)]
