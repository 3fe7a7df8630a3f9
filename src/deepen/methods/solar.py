"""SOLAR, depth up-scaling (DUS). arXiv 2312.15166, section 2.

Two copies of the L-block base, the first without its last d blocks, the second without its first d:
blocks 0..L-d-1, then d..L-1. That is L + N blocks for d = (L - N) / 2. The function changes and
everything trains.
"""

from deepen.methods.method import Method, copied
from deepen.planning.placement import overlapping_runs

METHOD = Method(
    name="solar",
    summary="plain copies, two overlapping runs of the base",
    reference="arXiv:2312.15166",
    place=overlapping_runs,
    fuse=copied,
    copies=True,
    trains="everything",
)
