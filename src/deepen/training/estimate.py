"""What training a grown model costs, by arithmetic alone.

**FLOPs.** A matrix product of [n, in] with [in, out] is 2·n·in·out FLOPs. Backward it is done twice
more: once for the gradient of its input, once for that of its weight. A frozen weight needs no
gradient of its own, and nothing below the lowest trained block needs any, so that training blocks T
of N costs

    N forward + (N - min T) through activations + |T| weight gradients

block units, against 3·N for training everything. Attention's products of activations have no
weight: forward they are 2 products of [S, S], backward 4 from the lowest trained block up. The
output head is run forward and backward in any case. Counted is what the mathematics asks for, over
all S² pairs of positions, as in PaLM's model FLOPs (arXiv 2204.02311, appendix B) and in torch's
FlopCounterMode: a causal kernel may skip half of the pairs, flash attention computes one of the
products anew, and norms, activation functions and the optimizer are not counted.

**Bytes.** Trained weights, their gradients and AdamW's two states are float32. In ``bfloat16`` the
frozen weights are bfloat16, and each step makes bfloat16 copies of the trained matrices. What the
backward pass needs is kept from the lowest trained block up, as PyTorch keeps it for transformers'
Llama with scaled dot product attention::

    each block            norm inputs 2·h (float32), queries, keys, values, attention's output,
                          its log-sum-exp, gate, SiLU(gate) and up
    a trained block, too  normed activations 2·h, inputs of q, k, v, gate, up and down

In bfloat16 autocast casts the inputs of q, k, v, gate and up each for itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict, Unpack

from deepen import methods
from deepen.base import Base
from deepen.errors import DeepenError
from deepen.methods.base import Request
from deepen.placement import Placement, choose_gaps
from deepen.plans import Plan, insert_after
from deepen.records import Record

Precision = Literal["float32", "bfloat16"]
"""Arithmetic of the forward and backward pass."""
Trained = Literal["new_blocks", "everything"]
"""What trains."""

_FLOAT32 = 4  # bytes


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


def training_flops_per_token(
    base: Base,
    trainable_blocks: Sequence[int],
    depth: int,
    sequence_length: int,
    *,
    trains_everything: bool,
    trains_head: bool = False,
) -> float:
    """Return the model FLOPs of one trained token.

    Args:
        base: A model of the same block shape: the base, or the grown model itself.
        trainable_blocks: Blocks that train, as indices of the model that is trained.
        depth: Number of blocks of the model that is trained.
        sequence_length: Tokens in a sequence, S.
        trains_everything: Whether all blocks, the embeddings and the head train.
        trains_head: Whether the output head trains beside the blocks.
    """
    trained = range(depth) if trains_everything else trainable_blocks
    head = trains_everything or trains_head
    parts = _flops(_shape(base), depth, trained, sequence_length, head=head)
    return sum(part.total for part in parts.values())


class Conditions(TypedDict, total=False):
    """How training goes: keyword arguments that ``estimate`` and ``placements`` share."""

    sequence_length: Required[int]
    """Tokens in a sequence."""
    sequences: int
    """Sequences in a forward pass; by default 1."""
    precision: Precision
    """Arithmetic of the passes; by default float32."""
    activation_checkpointing: bool
    """Whether blocks compute their activations anew; by default not."""
    fused_loss: bool
    """Whether head and loss are one kernel that never holds all logits; by default not."""
    optimizer_states: int
    """float32 numbers that the optimizer keeps of each trained parameter; by default AdamW's 2."""


def estimate(
    base: Base,
    plan: Plan,
    *,
    trains: Trained,
    label: str | None = None,
    **conditions: Unpack[Conditions],
) -> Estimate:
    """Estimate what training a grown model costs.

    Args:
        base: The base.
        plan: How it is grown; with ``everything`` only its depth counts.
        trains: The new blocks, or everything.
        label: What to call it; by default what trains.
        **conditions: See ``Conditions``.
    """
    shape, depth, step = _shape(base), plan.depth, _Step(**conditions)
    everything = trains == "everything"
    trained = list(range(depth)) if everything else plan.new_blocks
    parts, again, sizes = _cost(shape, depth, trained, everything, step)
    full_parts, full_again, full_sizes = _cost(shape, depth, range(depth), True, step)
    flops, full = (sum(part.total for part in some.values()) for some in (parts, full_parts))
    costs: dict[str, Any] = {**parts, **sizes}
    return Estimate(
        label=label or trains.replace("_", " "),
        depth=depth,
        trains=trains,
        trained_blocks=trained,
        sequence_length=step.sequence_length,
        sequences=step.sequences,
        precision=step.precision,
        activation_checkpointing=step.activation_checkpointing,
        parameters=shape.outside + depth * shape.block,
        trainable_parameters=_trainable(shape, trained, everything),
        flops_per_token=flops,
        recomputation_flops_per_token=again,
        relative_blocks=(depth + (depth - min(trained)) + len(trained)) / (3 * depth),
        relative_step_time=(flops + again) / (full + full_again),
        total_bytes=sum(sizes.values()),
        relative_bytes=sum(sizes.values()) / sum(full_sizes.values()),
        **costs,
    )


def placements(
    base: Base, new_layers: int | None = None, **conditions: Unpack[Conditions]
) -> list[Estimate]:
    """Estimate full training, SOLAR, LLaMA PRO's spacing and new blocks at the top and elsewhere.

    SOLAR is left out where its rule does not allow that many new blocks.

    Args:
        base: The base.
        new_layers: Number of new blocks; by default half of the base's.
        **conditions: See ``Conditions``.
    """
    new = max(1, base.depth // 2) if new_layers is None else new_layers
    return [
        estimate(base, plan, trains=trains, label=label, **conditions)
        for label, plan, trains in arrangements(base.depth, new)
    ]


def arrangements(depth: int, new_layers: int) -> Iterator[tuple[str, Plan, Trained]]:
    """Yield label, plan and what trains for each row of ``placements``."""
    regions = {}
    for name in ("top", "middle", "bottom"):
        # As many to a gap as it takes for half of the gaps to hold them.
        per_gap = -(-new_layers // max(1, min(depth - 1, depth // 2)))
        gaps = choose_gaps(Placement(name), depth, new_layers, per_gap, open_top=False)
        regions[name] = insert_after(depth, gaps, copies=False)
    yield "full training", regions["top"], "everything"
    with suppress(DeepenError):
        yield "solar", methods.get("solar").place(Request(depth, new_layers)), "everything"
    per_gap = -(-new_layers // depth)
    spaced = Request(depth, new_layers, per_gap=per_gap)
    yield "llama-pro spacing", methods.get("llama-pro").place(spaced), "new_blocks"
    for name, plan in regions.items():
        yield name, plan, "new_blocks"


@dataclass(frozen=True)
class _Shape:
    """Sizes of a model that do not depend on its depth."""

    hidden: int
    query: int
    key_value: int
    ffn: int
    heads: int
    key_value_heads: int
    vocabulary: int
    block: int
    """Parameters of one block."""
    matrices: int
    """Parameters of its linear layers, biases left aside."""
    outside: int
    """Parameters outside all blocks."""
    normed_heads: bool
    """Whether queries and keys are normed."""


@dataclass(frozen=True)
class _Step:
    """How a step is taken; see ``Conditions``."""

    sequence_length: int
    sequences: int = 1
    precision: Precision = "float32"
    activation_checkpointing: bool = False
    fused_loss: bool = False
    optimizer_states: int = 2

    @property
    def tokens(self) -> int:
        """Tokens in a forward pass."""
        return self.sequences * self.sequence_length

    @property
    def narrow(self) -> int:
        """Bytes of a number that linear layers and attention compute with."""
        return 2 if self.precision == "bfloat16" else _FLOAT32


def _shape(base: Base) -> _Shape:
    """Read the sizes off the tensors of block 0 and the embeddings."""
    infos = base.source.infos
    axes: dict[str, int] = {}
    shapes = []
    for name, spec in base.anatomy.block.items():
        if spec.role != "buffer":
            shapes.append(infos[base.family.name(0, name)])
            axes |= zip(spec.axes, shapes[-1].shape, strict=True)
    heads = int(base.resolved["num_attention_heads"])
    return _Shape(
        hidden=axes["residual"],
        query=axes["query"],
        key_value=axes["key_value"],
        ffn=axes["ffn"],
        heads=heads,
        key_value_heads=axes["key_value"] * heads // axes["query"],
        vocabulary=infos["model.embed_tokens.weight"].shape[0],
        block=sum(info.parameters for info in shapes),
        matrices=sum(info.parameters for info in shapes if len(info.shape) == 2),
        outside=sum(infos[name].parameters for name in base.anatomy.outside),
        normed_heads="head" in axes,
    )


def _cost(
    shape: _Shape, depth: int, trained: Sequence[int], everything: bool, step: _Step
) -> tuple[dict[str, Flops], float, dict[str, int]]:
    """Return FLOPs by part, those of recomputation, and bytes by kind."""
    parts = _flops(shape, depth, trained, step.sequence_length, head=everything)
    through = depth - min(trained)
    # torch stops before the block's last product, the output of which nothing needs.
    once = 2 * (shape.matrices - shape.hidden * shape.ffn) + parts["attention"].forward / depth
    again = once * through if step.activation_checkpointing else 0.0
    trainable = _trainable(shape, trained, everything)
    frozen = shape.outside + depth * shape.block - trainable
    head = shape.vocabulary * shape.hidden
    copied = len(trained) * shape.matrices + (head if everything else 0)
    # Logits, and the gradients of the log-softmax and of its input in float32.
    loss = 0 if step.fused_loss else step.tokens * shape.vocabulary * (step.narrow + 2 * _FLOAT32)
    sizes = {
        "weight_bytes": step.narrow * frozen + _FLOAT32 * trainable,
        "copy_bytes": step.narrow * copied if step.narrow < _FLOAT32 else 0,
        "gradient_bytes": _FLOAT32 * trainable,
        "optimizer_bytes": step.optimizer_states * _FLOAT32 * trainable,
        "activation_bytes": _activation_bytes(shape, depth, trained, everything, step),
        "loss_bytes": loss,
    }
    return parts, again, sizes


def _trainable(shape: _Shape, trained: Sequence[int], everything: bool) -> int:
    """Count the trained parameters."""
    return len(trained) * shape.block + (shape.outside if everything else 0)


def _flops(
    shape: _Shape, depth: int, trained: Iterable[int], sequence_length: int, *, head: bool
) -> dict[str, Flops]:
    """Return the FLOPs per token of linear layers, attention and output head."""
    blocks = set(trained)
    through = depth - min(blocks, default=depth)
    linear = 2.0 * shape.matrices
    attention = 4.0 * sequence_length * shape.query
    output = 2.0 * shape.vocabulary * shape.hidden
    parts = {
        "linear": (depth * linear, through * linear, len(blocks) * linear),
        "attention": (depth * attention, through * 2 * attention, 0.0),
        "head": (output, output if through else 0.0, output if head else 0.0),
    }
    return {
        name: Flops(forward=forward, activation_gradient=activation, weight_gradient=weight)
        for name, (forward, activation, weight) in parts.items()
    }


def _activation_bytes(
    shape: _Shape, depth: int, trained: Sequence[int], everything: bool, step: _Step
) -> int:
    """Return the bytes that the backward pass keeps, weights and their copies left aside."""
    lowest = min(trained)
    # Autocast leaves the residual stream in the embeddings' dtype.
    residual = _FLOAT32 if everything else step.narrow
    frozen, of_trained = (_block_bytes(shape, t, residual, step) for t in (False, True))
    blocks = frozen * (depth - lowest - len(trained)) + of_trained * len(trained)
    if step.activation_checkpointing:
        blocks = (depth - lowest) * residual * shape.hidden + of_trained
    elif not everything:
        # Nothing is asked of the lowest trained block's input, so its first norm keeps less.
        blocks -= _FLOAT32 * (shape.hidden + 1)
    last_norm = _FLOAT32 * (shape.hidden + 1) + (residual * shape.hidden if everything else 0)
    head = step.narrow * shape.hidden if everything or step.fused_loss else 0
    loss = 0 if step.fused_loss else _FLOAT32 * shape.vocabulary
    rotations = 2 * step.sequence_length * residual * shape.query // shape.heads
    labels = 8 * (2 if everything else 1)
    return step.tokens * (blocks + last_norm + head + loss + labels) + rotations


def _block_bytes(shape: _Shape, trained: bool, residual: int, step: _Step) -> int:
    """Return the bytes per token that one block keeps."""
    hidden, both = shape.hidden, shape.query + shape.key_value
    norms = 2 * _FLOAT32 * (hidden + 1)
    attention = step.narrow * 2 * both + _FLOAT32 * shape.heads
    ffn = step.narrow * 3 * shape.ffn
    if shape.normed_heads:
        norms += _FLOAT32 * (both + shape.heads + shape.key_value_heads)
    if trained:
        norms += residual * 2 * hidden + (step.narrow * both if shape.normed_heads else 0)
        # One norm's output for q, k and v and one for gate and up, or a cast of it for each.
        inputs = 5 if step.narrow < _FLOAT32 else 2
        ffn += step.narrow * (inputs * hidden + shape.ffn)
    return norms + attention + ffn
