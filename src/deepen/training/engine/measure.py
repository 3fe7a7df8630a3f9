"""What a step costs, against what the machine can do."""

import time
from functools import cache
from statistics import median
from typing import Any

import torch

from deepen.common.system import peak_resident_bytes

_SIZES = {"cpu": 1024, "cuda": 8192}
_REPETITIONS, _ENOUGH_SECONDS = 5, 0.5


class Clock:
    """Marks points in time without making a GPU wait."""

    def __init__(self, device: torch.device) -> None:
        """Measure on one device."""
        self._cuda = device.type == "cuda"

    def mark(self) -> Any:  # noqa: ANN401 (an event or a number)
        """Mark this point of the device's work."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:  # noqa: ANN401
        """Return the time between two marks, waiting until the second is reached."""
        if not self._cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOPs per second of a large matrix product, once a process.

    The first product is not counted, unless it takes so long, as in a dtype that a CPU has no
    instructions for, that what is done but once in it is nothing beside.
    """
    size = _SIZES.get(device.type, 2048)
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(size, size, device=device, generator=generator).to(dtype)
    clock, seconds = Clock(device), []
    for _ in range(_REPETITIONS + 1):
        start = clock.mark()
        torch.matmul(left, left)
        seconds.append(clock.seconds(start, clock.mark()))
        if sum(seconds) > _ENOUGH_SECONDS:
            break
    return float(2 * size**3 / median(seconds[1:] or seconds))


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory: of the GPU, or of the process where there is none."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()
