"""Activation checkpointing that leaves the frozen trunk out of the backward pass.

transformers' own switch makes the embeddings' output require gradients, so that the backward pass
runs through every frozen block below the lowest trained one; in a toy with the new blocks on top
that costs 74 instead of 50 GFLOP. Here the blocks are switched one by one, from the lowest trained
one up, and the embeddings are left alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Sequence[Any], lowest: int) -> None:
    """Let blocks recompute their activations in the backward pass.

    Args:
        blocks: A module's blocks from bottom to top.
        lowest: The lowest one that gradients reach.
    """
    for index, block in enumerate(blocks):
        # The two attributes that transformers' GradientCheckpointingLayer reads; a test holds them.
        block.gradient_checkpointing = index >= lowest
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
