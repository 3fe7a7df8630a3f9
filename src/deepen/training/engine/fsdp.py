"""What accelerate's FSDP2 needs to be told.

It runs on CPU processes too, so that the path many GPUs take is tested on a laptop. accelerate
shards on accelerators only: asked for FSDP on CPUs, it trains with DDP and says nothing. torch
itself shards on CPUs as well, over gloo; so accelerate is told, while it decides, that the
processes have devices of their own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType


@contextmanager
def cpu_fsdp_allowed() -> Iterator[None]:
    """Let an Accelerator that is made inside use FSDP on CPUs, if the launcher asks for FSDP."""
    state = PartialState()
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or state.device.type != "cpu" or state.num_processes == 1:
        yield
        return
    before, state.distributed_type = state.distributed_type, DistributedType.MULTI_GPU
    try:
        yield
    finally:
        # What the Accelerator decided stays, unless it was not made.
        if state.distributed_type == DistributedType.MULTI_GPU:
            state.distributed_type = before


def keep_losses_exact(accelerator: Any) -> None:  # noqa: ANN401 (accelerate has no types)
    """Add up gradients in float32, and leave the loss in it, where FSDP2 computes in bfloat16.

    accelerate's own policy rounds a model's outputs to bfloat16, the loss with its three digits
    among them.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is None or plugin.fsdp_version != 2 or policy is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=policy.param_dtype, reduce_dtype=torch.float32, output_dtype=None
    )
