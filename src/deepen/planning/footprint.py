"""The bytes that a training step holds, by arithmetic alone.

Trained weights, their gradients and AdamW's two states are float32. In ``bfloat16`` the
frozen weights are bfloat16, and each step makes bfloat16 copies of the trained matrices. What the
backward pass needs is kept from the lowest trained block up, as PyTorch keeps it for transformers'
Llama with scaled dot product attention::

    each block            norm inputs 2·h (float32), queries, keys, values, attention's output,
                          its log-sum-exp, gate, SiLU(gate) and up
    a trained block, too  normed activations 2·h, inputs of q, k, v, gate, up and down

In bfloat16 autocast casts the inputs of q, k, v, gate and up each for itself.

Blocks of other kinds are counted after the same pattern: experts by those that a token passes
through, an FFN without a gate by its input's projection alone, and every further linear layer (of a
state-space mixer, a router, a low-rank projection) by one activation of its width. There the count
of activations is no more than a guide: tiny models kept 1.1 (GPT-NeoX), 1.3 (Mixtral), 1.5 (GPT-2)
and 2 times as much (Gemma 2, whose norms, activation function and logits' cap keep more).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deepen.common.errors import DeepenError
from deepen.records.cost import Precision

_FLOAT32 = 4  # bytes
_MOST_TOKENS = 2**30


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that do not depend on its depth; 0 for what its blocks do not have."""

    hidden: int
    """Width of the residual stream."""
    vocabulary: int
    """Rows of the output head."""
    outside: int
    """Parameters outside all blocks; tied ones count once."""
    block: int
    """Parameters of one block, all experts included."""
    matrices: int
    """Parameters of its linear layers, all experts included, biases left aside."""
    active: int
    """Those of them that one token passes through: ``matrices``, unless there are experts."""
    query: int = 0
    """Width of the queries, all heads together."""
    key_value: int = 0
    """Width of the keys, and of the values, all heads together."""
    heads: int = 0
    """Number of query heads."""
    ffn: int = 0
    """FFN neurons that one token passes through, over all experts that it meets."""
    normed_heads: bool = False
    """Whether queries and keys are normed."""

    @property
    def head(self) -> int:
        """Dimensions of a head."""
        return self.query // self.heads if self.heads else 0

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return self.key_value // self.head if self.head else 0

    @property
    def last(self) -> int:
        """Parameters of the block's last linear layer, the FFN's output."""
        return self.hidden * self.ffn

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate beside its up projection."""
        widths = self.active / self.hidden - 2 * (self.query + self.key_value)
        return bool(self.ffn) and widths >= 2.5 * self.ffn

    @property
    def other(self) -> int:
        """Width of the linear layers that are neither attention's nor the FFN's."""
        usual = 2 * (self.query + self.key_value) + (3 if self.gated else 2) * self.ffn
        return max(0, self.active // self.hidden - usual)


@dataclass(frozen=True)
class TrainingStep:
    """How a step is taken; see ``deepen.planning.cost.Conditions``."""

    sequence_length: int
    sequences: int = 1
    precision: Precision = "float32"
    activation_checkpointing: bool = False
    fused_loss: bool = False
    optimizer_states: int = 2

    def __post_init__(self) -> None:
        """Refuse steps that no machine takes.

        Raises:
            DeepenError: There are none, or too many, sequences or tokens in one.
        """
        for name, given in (("sequences", self.sequences), ("tokens", self.sequence_length)):
            if not 1 <= given <= _MOST_TOKENS:
                raise DeepenError(
                    f"A training step of {given} {name} cannot be; ask for 1 to {_MOST_TOKENS:,}."
                )

    @property
    def tokens(self) -> int:
        """Tokens in a forward pass."""
        return self.sequences * self.sequence_length

    @property
    def narrow(self) -> int:
        """Bytes of a number that linear layers and attention compute with."""
        return 2 if self.precision == "bfloat16" else _FLOAT32


def trainable_parameters(shape: Shape, trained: Sequence[int], everything: bool) -> int:
    """Count the parameters that train.

    Args:
        shape: Sizes of the model.
        trained: Blocks that train.
        everything: Whether what is outside all blocks trains as well.
    """
    return len(trained) * shape.block + (shape.outside if everything else 0)


def sizes(
    shape: Shape, depth: int, trained: Sequence[int], everything: bool, step: TrainingStep
) -> dict[str, int]:
    """Return the bytes by kind, under the names of ``Estimate``'s fields.

    Args:
        shape: Sizes of the model.
        depth: Number of blocks.
        trained: Blocks that train, at least one.
        everything: Whether what is outside all blocks trains as well.
        step: How a step is taken.
    """
    trainable = trainable_parameters(shape, trained, everything)
    frozen = shape.outside + depth * shape.block - trainable
    head = shape.vocabulary * shape.hidden
    copied = len(trained) * shape.matrices + (head if everything else 0)
    # Logits, and the gradients of the log-softmax and of its input in float32.
    loss = 0 if step.fused_loss else step.tokens * shape.vocabulary * (step.narrow + 2 * _FLOAT32)
    return {
        "weight_bytes": step.narrow * frozen + _FLOAT32 * trainable,
        "copy_bytes": step.narrow * copied if step.narrow < _FLOAT32 else 0,
        "gradient_bytes": _FLOAT32 * trainable,
        "optimizer_bytes": step.optimizer_states * _FLOAT32 * trainable,
        "activation_bytes": _activation_bytes(shape, depth, trained, everything, step),
        "loss_bytes": loss,
    }


def _activation_bytes(
    shape: Shape, depth: int, trained: Sequence[int], everything: bool, step: TrainingStep
) -> int:
    """Return the bytes that the backward pass keeps, weights and their copies left aside."""
    lowest = min(trained)
    # Autocast leaves the residual stream in the embeddings' dtype.
    residual = _FLOAT32 if everything else step.narrow
    frozen, of_trained = (_block_bytes(shape, t, residual, step) for t in (False, True))
    blocks = frozen * (depth - lowest - len(trained)) + of_trained * len(trained)
    if step.activation_checkpointing:
        # All inputs, and one block's activations, of which a float32 input is one.
        shared = _FLOAT32 * shape.hidden if residual == _FLOAT32 else 0
        blocks = (depth - lowest) * residual * shape.hidden + of_trained - shared
    elif not everything:
        # Nothing is asked of the lowest trained block's input, so its first norm keeps less.
        blocks -= _FLOAT32 * (shape.hidden + 1)
    last_norm = _FLOAT32 * (shape.hidden + 1) + (residual * shape.hidden if everything else 0)
    head = step.narrow * shape.hidden if everything or step.fused_loss else 0
    loss = 0 if step.fused_loss else _FLOAT32 * shape.vocabulary
    rotations = 2 * step.sequence_length * residual * shape.head
    labels = 8 * (2 if everything else 1)
    return step.tokens * (blocks + last_norm + head + loss + labels) + rotations


def _block_bytes(shape: Shape, trained: bool, residual: int, step: TrainingStep) -> int:
    """Return the bytes per token that one block keeps."""
    hidden, both = shape.hidden, shape.query + shape.key_value
    norms = 2 * _FLOAT32 * (hidden + 1)
    attention = step.narrow * 2 * both + _FLOAT32 * shape.heads
    # A gate is kept before and after its activation function, and with it what it is multiplied by.
    ffn = step.narrow * ((3 if shape.gated else 1) * shape.ffn + shape.other)
    if shape.normed_heads:
        norms += _FLOAT32 * (both + shape.heads + shape.key_value_heads)
    if trained:
        norms += residual * 2 * hidden + (step.narrow * both if shape.normed_heads else 0)
        # One norm's output for q, k and v and one for gate and up, or a cast of it for each.
        inputs = 5 if step.narrow < _FLOAT32 else 2
        ffn += step.narrow * (inputs * hidden + shape.ffn)
    return norms + attention + ffn
