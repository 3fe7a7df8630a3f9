"""What training costs."""

from typing import Literal

from deepen.records.record import Record

Precision = Literal["float32", "bfloat16"]
"""Arithmetic of the forward and backward pass."""
Trained = Literal["new_blocks", "everything"]
"""What trains."""


class Flops(Record):
    """FLOPs per token of one part of the model."""

    forward: float
    """Forward pass."""
    activation_gradient: float
    """Gradients through to the part's input."""
    weight_gradient: float
    """Gradients of the part's weights."""

    @property
    def total(self) -> float:
        """All three."""
        return self.forward + self.activation_gradient + self.weight_gradient


class Estimate(Record):
    """What a training step costs in one process that holds the whole model."""

    label: str
    """What is trained where, for example ``top``."""
    depth: int
    """Number of blocks."""
    trains: Trained
    """What trains."""
    trained_blocks: list[int]
    """Blocks that are trained."""
    sequence_length: int
    """Tokens in a sequence."""
    sequences: int
    """Sequences in a forward pass (micro-batch)."""
    precision: Precision
    """Arithmetic of the passes."""
    activation_checkpointing: bool
    """Whether blocks from the lowest trained one up compute their activations anew."""
    parameters: int
    """All parameters; tied ones count once."""
    trainable_parameters: int
    """Parameters that are trained."""
    linear: Flops
    """Linear layers of all blocks."""
    attention: Flops
    """Products of queries, keys and values."""
    head: Flops
    """Output head."""
    flops_per_token: float
    """Model FLOPs: all of the above."""
    recomputation_flops_per_token: float
    """FLOPs of activation checkpointing's second forward pass."""
    relative_blocks: float
    """Block units as a share of full training's 3·N; head, attention, recomputation left aside."""
    relative_step_time: float
    """FLOPs, recomputation included, as a share of full training's of the same stack."""
    weight_bytes: int
    """Weights."""
    copy_bytes: int
    """bfloat16 copies of trained float32 matrices."""
    gradient_bytes: int
    """Gradients of trained weights."""
    optimizer_bytes: int
    """States of the optimizer."""
    activation_bytes: int
    """What is kept for the backward pass; with checkpointing, one block's activations included."""
    loss_bytes: int
    """Logits and their gradients while the loss is taken; nothing with a fused loss."""
    total_bytes: int
    """All of these at once: a bound from above, near to what a step takes that sums gradients."""
    relative_bytes: float
    """The same as a share of full training's of the same stack."""
