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

**Bytes.** See ``deepen.planning.footprint``.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from statistics import fmean
from typing import Any, Required, TypedDict, Unpack

import torch

from deepen.base.anatomy import Axis
from deepen.base.model import Model
from deepen.common.errors import DeepenError
from deepen.planning.footprint import Shape, TrainingStep, sizes, trainable_parameters
from deepen.planning.placement import PlacementRequest, in_gaps, overlapping_runs
from deepen.planning.plan import Plan
from deepen.records.cost import Estimate, Flops, Precision, Trained

_EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")


def training_flops_per_token(
    base: Model,
    trainable_blocks: Sequence[int],
    depth: int,
    sequence_length: int,
    *,
    trains_everything: bool,
    also: Collection[str] = (),
) -> float:
    """Return the model FLOPs of one trained token.

    Args:
        base: A model of the same block shape: the base, or the grown model itself.
        trainable_blocks: Blocks that train, as indices of the model that is trained.
        depth: Number of blocks of the model that is trained.
        sequence_length: Tokens in a sequence, S.
        trains_everything: Whether all blocks, the embeddings and the head train.
        also: What else trains beside the blocks: ``norm`` (the final one), ``head``,
            ``embeddings``; where head and embeddings are tied, either is both.
    """
    trained = range(depth) if trains_everything else trainable_blocks
    embeddings, head = (trains_everything or part in also for part in ("embeddings", "head"))
    if base.resolved.get("tie_word_embeddings"):
        embeddings = head = embeddings or head
    parts = _flops(
        shape_of(base),
        depth,
        trained,
        sequence_length,
        through=embeddings,
        head=head,
        norm="norm" in also,
    )
    return sum(part.total for part in parts.values())


def forward_flops_per_token(model: Model, blocks: Collection[int], sequence_length: int) -> float:
    """Return the model FLOPs of running some blocks forward on one token; blocks count alike."""
    shape = shape_of(model)
    return len(blocks) * (2.0 * shape.active + 4.0 * sequence_length * shape.query)


def reading_flops_per_token(base: Model, depth: int, sequence_length: int) -> float:
    """Return the model FLOPs of running a whole model forward on one token, head and all.

    Args:
        base: A model of the same block shape: the base, or the grown model itself.
        depth: Number of blocks of the model that reads.
        sequence_length: Tokens in a sequence, S.
    """
    return training_flops_per_token(base, (), depth, sequence_length, trains_everything=False)


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
    base: Model,
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
    shape, depth, step = shape_of(base), plan.depth, TrainingStep(**conditions)
    everything = trains == "everything"
    trained = list(range(depth)) if everything else plan.new_blocks
    parts, again, held = _cost(shape, depth, trained, everything, step)
    full_parts, full_again, full_held = _cost(shape, depth, range(depth), True, step)
    flops, full = (sum(part.total for part in some.values()) for some in (parts, full_parts))
    costs: dict[str, Any] = {**parts, **held}
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
        trainable_parameters=trainable_parameters(shape, trained, everything),
        flops_per_token=flops,
        recomputation_flops_per_token=again,
        relative_blocks=(depth + (depth - min(trained)) + len(trained)) / (3 * depth),
        relative_step_time=(flops + again) / (full + full_again),
        total_bytes=sum(held.values()),
        relative_bytes=sum(held.values()) / sum(full_held.values()),
        **costs,
    )


def then_everything(first: Estimate, then: Estimate, share: float) -> Estimate:
    """Estimate a run in two phases: what trains at first, then everything.

    Args:
        first: Training the one part.
        then: Training everything, of the same stack.
        share: Share of the steps, at the end, in which everything trains.

    Returns:
        What a step costs on average, in the memory of the phase that takes more.

    Raises:
        DeepenError: The share is none.
    """
    if not 0 <= share <= 1:
        raise DeepenError(f"{share:g} is no share of the steps; give one from 0 to 1.")

    def mean(one: Any, other: Any) -> Any:  # noqa: ANN401 (numbers, or FLOPs of a part)
        if isinstance(one, Flops):
            kinds = Flops.model_fields
            return Flops(**{k: mean(getattr(one, k), getattr(other, k)) for k in kinds})
        return (1 - share) * one + share * other

    largest = max(first, then, key=lambda phase: phase.total_bytes)
    fields = {*Estimate.model_fields}
    of_bytes = {name for name in fields if name.endswith("bytes")}
    of_work = {name for name in fields if name.startswith("relative") or "flops" in name}
    of_work = (of_work | {"linear", "attention", "head"}) - of_bytes
    label = f"{first.label}, then everything ({share:.0%})"
    return then.model_copy(
        update={"label": label}
        | {name: mean(getattr(first, name), getattr(then, name)) for name in of_work}
        | {name: getattr(largest, name) for name in of_bytes}
    )


def placements(
    base: Model, new_layers: int | None = None, **conditions: Unpack[Conditions]
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
    # As many to a gap as it takes for half of the gaps to hold them.
    per_gap = -(-new_layers // max(1, min(depth - 1, depth // 2)))
    crowded = PlacementRequest(depth, new_layers, per_gap=per_gap)
    names = ("top", "middle", "bottom")
    regions = {name: in_gaps(crowded, name, copies=False) for name in names}
    yield "full training", regions["top"], "everything"
    with suppress(DeepenError):
        yield "solar", overlapping_runs(PlacementRequest(depth, new_layers)), "everything"
    spaced = PlacementRequest(depth, new_layers, per_gap=-(-new_layers // depth))
    yield "llama-pro spacing", in_gaps(spaced, "uniform", copies=True), "new_blocks"
    for name, plan in regions.items():
        yield name, plan, "new_blocks"


def shape_of(base: Model) -> Shape:
    """Read a model's sizes; with ``_widths`` all here that knows how blocks are described.

    Where blocks differ, sizes are means over all of them.
    """
    infos, blocks = base.source.infos, base.anatomy.blocks
    unlike = {id(block): index for index, block in enumerate(blocks)}
    widths = {key: _widths(base, index) for key, index in unlike.items()}
    means = {
        name: round(fmean(widths[id(block)][name] for block in blocks))
        for name in next(iter(widths.values()))
    }
    return Shape(
        vocabulary=infos[base.family.embeddings].shape[0],
        outside=sum(infos[name].parameters for name in base.anatomy.outside),
        normed_heads=any(s.role == "query_norm" for b in blocks for s in b.block.values()),
        **means,
    )


def _widths(base: Model, index: int) -> dict[str, float]:
    """Read the sizes of one block, under the names of ``Shape``'s fields."""
    block, infos = base.anatomy.blocks[index], base.source.infos
    share = min(1.0, _experts_of_a_token(base) / len(block.experts)) if block.experts else 1.0
    axes: dict[Axis, int] = {}
    widths = dict.fromkeys(("block", "matrices", "active", "ffn"), 0.0)
    for name, spec in block.block.items():
        place = block.places[name]
        stored = torch.empty(infos[base.family.name(index, place.suffix)].shape, device="meta")
        shape = place.read(stored, block.sizes).shape
        axes |= zip(spec.axes, shape, strict=True)
        met = share if spec.unit.isdigit() else 1.0
        widths["block"] += shape.numel()
        if spec.is_weight:
            widths["matrices"] += shape.numel()
            widths["active"] += met * shape.numel()
            widths["ffn"] += met * shape[1] if spec.role == "ffn_output" else 0
    return widths | {
        "hidden": axes["residual"],
        "query": axes.get("query", 0),
        "key_value": axes.get("key_value", 0),
        "heads": block.heads.query if block.heads and "query" in axes else 0,
    }


def _experts_of_a_token(base: Model) -> float:
    """Return how many experts a token passes through; all of them if the config does not say."""
    given = (base.resolved.get(field) for field in _EXPERTS_OF_A_TOKEN)
    return next((number for number in given if isinstance(number, int)), math.inf)


def _cost(
    shape: Shape, depth: int, trained: Sequence[int], everything: bool, step: TrainingStep
) -> tuple[dict[str, Flops], float, dict[str, int]]:
    """Return FLOPs by part, those of recomputation, and bytes by kind."""
    parts = _flops(shape, depth, trained, step.sequence_length, through=everything, head=everything)
    # torch stops before the block's last product, the output of which nothing needs.
    once = 2 * (shape.active - shape.last) + parts["attention"].forward / depth
    again = once * (depth - min(trained)) if step.activation_checkpointing else 0.0
    return parts, again, sizes(shape, depth, trained, everything, step)


def _flops(
    shape: Shape,
    depth: int,
    trained: Iterable[int],
    sequence_length: int,
    *,
    through: bool,
    head: bool,
    norm: bool = False,
) -> dict[str, Flops]:
    """Return the FLOPs per token of linear layers, attention and output head.

    Args:
        shape: Sizes of the model.
        depth: Number of blocks.
        trained: Blocks that train.
        sequence_length: Tokens in a sequence, S.
        through: Whether gradients go through all blocks, down to the embeddings.
        head: Whether the output head trains.
        norm: Whether the final norm trains.
    """
    blocks = set(trained)
    reached = depth if through else depth - min(blocks, default=depth)
    linear = 2.0 * shape.active
    attention = 4.0 * sequence_length * shape.query
    output = 2.0 * shape.vocabulary * shape.hidden
    parts = {
        "linear": (depth * linear, reached * linear, len(blocks) * linear),
        "attention": (depth * attention, reached * 2 * attention, 0.0),
        "head": (output, output if reached or norm else 0.0, output if head else 0.0),
    }
    return {
        name: Flops(forward=forward, activation_gradient=activation, weight_gradient=weight)
        for name, (forward, activation, weight) in parts.items()
    }


def head_flops(shape: Shape) -> float:
    """Return the FLOPs per token of a frozen output head that gradients pass through."""
    return 4.0 * shape.vocabulary * shape.hidden
