"""Align one block to another along nothing but what leaves its function as it is.

A block does not change when its experts change places, the neurons of an FFN, its KV groups, the
query heads inside them, or the basis inside a head (docs/methods.md). ``transport`` finds these
maps; here they meet the anatomy: which tensors they act on, which norm stands before them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from deepen.alignment.experts import Renumbered, expert_order
from deepen.base.anatomy import Axis, Block, BlockAnatomy, Role
from deepen.base.anatomy.freedom import ATTENTION, FFN, beside
from deepen.base.model import Model
from deepen.common.system import return_freed_memory
from deepen.transport.assignment import best_share, choose_rows
from deepen.transport.heads import (
    Attention,
    HeadMatch,
    Rotary,
    apply_attention,
    keep_groups,
    match_attention,
)
from deepen.transport.neurons import Ffn, NeuronMatch, apply_ffn, keep_neurons, match_ffn
from deepen.transport.sinkhorn import warn_of_marginals

MAX_ITERATIONS = 10_000
"""Upper limit of Sinkhorn iterations where nobody asks for another."""
_PER_GROUP: tuple[Axis, ...] = ("key_value", "value", "kv_heads", "group_indexer_query")
_PER_HEAD: tuple[Axis, ...] = ("query", "attended", "heads")


Pair = tuple[int, int]
"""A lower and an upper block."""


@dataclass(frozen=True)
class Similarity:
    """What is known of two blocks beside their weights: how alike their activations are."""

    neurons: Mapping[str, Tensor] = field(default_factory=dict)
    """FFN's unit → correlations ``[ffn, ffn]``."""
    heads: Tensor | None = None
    """Correlations ``[heads, heads]`` of what heads write."""


class Matcher:
    """Matches a lower block to an upper one, part by part, when a part is first asked for."""

    def __init__(
        self,
        below: Block,
        above: Block,
        anatomy: BlockAnatomy,
        *,
        reg: float | None = None,
        max_iterations: int = MAX_ITERATIONS,
        similarity: Similarity | None = None,
    ) -> None:
        """Match nothing yet.

        Args:
            below: The lower block, A.
            above: The upper block, B.
            anatomy: What both are made of.
            reg: ``None`` for exact assignment of neurons, else entropic regularisation.
            max_iterations: Upper limit of Sinkhorn iterations for one entropic plan.
            similarity: What neurons and heads are matched by instead of by their weights.
        """
        self._given, self.above, self.anatomy = below, above, anatomy
        self._reg, self._similarity = reg, similarity or Similarity()
        self._max_iterations = max_iterations
        self._neurons: dict[str, NeuronMatch | None] = {}

    @cached_property
    def experts(self) -> list[int]:
        """For every expert of the upper block the one of the lower that matches it."""
        if not self.anatomy.experts:
            return []
        order: list[int] = expert_order(self._given, self.above, self.anatomy).tolist()
        return_freed_memory()  # every expert's weights were read
        return order

    @cached_property
    def below(self) -> Block:
        """The lower block, its experts in the order of those of the upper block."""
        if not self.experts:
            return self._given
        return Renumbered(self._given, self.anatomy, self.experts)

    def neurons(self, unit: str) -> NeuronMatch | None:
        """Match the neurons of one FFN; ``None`` if the block has no such FFN."""
        if self._reg is not None:
            return self._match_neurons(unit)  # a plan is as large as the FFN is wide, squared
        if unit not in self._neurons:
            self._neurons[unit] = self._match_neurons(unit)
        return self._neurons[unit]

    def _match_neurons(self, unit: str) -> NeuronMatch | None:
        a, b = (
            ffn_of(block, self.anatomy, unit, folded=True) for block in (self.below, self.above)
        )
        if a is None or b is None:
            return None
        match = match_ffn(
            a,
            b,
            reg=self._reg,
            similarity=self._similarity.neurons.get(unit),
            max_iterations=self._max_iterations,
        )
        warn_of_marginals(match.marginal_error, "solver entropic")
        if self.anatomy.bilinear and not beside(self.anatomy, self._axis(unit), unit):
            return match
        ones = torch.ones_like(match.balance_below)
        return replace(
            match, sign=torch.ones_like(match.sign), balance_below=ones, balance_above=ones
        )

    @cached_property
    def heads(self) -> HeadMatch | None:
        """The match of the attention heads; ``None`` if the block has no ordinary attention."""
        a, b = (
            attention_of(block, self.anatomy, folded=True) for block in (self.below, self.above)
        )
        if a is None or b is None:
            return None
        match = match_attention(a, b, similarity=self._similarity.heads)
        gated = self.anatomy.heads is not None and self.anatomy.heads.gated
        if gated or beside(self.anatomy, "attended") or beside(self.anatomy, "value"):
            same = torch.eye(match.value.shape[-1], dtype=match.value.dtype, device=b.value.device)
            match = replace(match, value=same.expand_as(match.value))
        return match

    def aligned(self, share: float = 1.0) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of A, moved to where it belongs in B.

        Args:
            share: Share of each FFN's neurons, and of the KV groups, that is A's, the best matched
                ones; in the place of the others stand B's own.
        """
        done = set()
        for part in self.parts:
            for name, tensor in self.aligned_part(part, share):
                done.add(name)
                yield name, tensor
        for name in self.anatomy.block:
            if name not in done:
                yield name, self.aligned_rest(name)

    @property
    def parts(self) -> list[str | None]:
        """What is aligned as a whole: the attention (``None``) and every FFN by its unit."""
        return [None, *self.anatomy.units]

    def aligned_part(self, part: str | None, share: float = 1.0) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of one part of A, aligned; none if it has no such part."""
        return self._aligned_attention(share) if part is None else self._aligned_ffn(part, share)

    def _aligned_attention(self, share: float) -> Iterator[tuple[str, Tensor]]:
        """Yield query, key, value and output, aligned."""
        heads = self.heads
        if heads is None:
            return
        attention = attention_of(self.below, self.anatomy)
        assert attention is not None
        moved = apply_attention(heads, attention)
        if share < 1:
            own = attention_of(self.above, self.anatomy)
            assert own is not None
            moved = keep_groups(heads, moved, own, share)
        biases = (moved.query_bias, moved.key_bias, moved.value_bias)
        weights = (moved.query, moved.key, moved.value, moved.output)
        yield from self._named(zip(ATTENTION, weights, strict=True))
        yield from self._named(zip(ATTENTION, biases, strict=False), bias=True)

    def _aligned_ffn(self, unit: str, share: float) -> Iterator[tuple[str, Tensor]]:
        """Yield gate, up and down of one FFN, and what else has an entry per neuron, aligned."""
        match = self.neurons(unit)
        if match is None:
            return
        ffn = ffn_of(self.below, self.anatomy, unit)
        assert ffn is not None
        moved = apply_ffn(match, ffn)
        if share < 1:
            own = ffn_of(self.above, self.anatomy, unit)
            assert own is not None
            moved = keep_neurons(match, moved, own, share)
        weights, biases = (moved.gate, moved.up, moved.down), (moved.gate_bias, moved.up_bias)
        yield from self._named(zip(FFN, weights, strict=True), unit)
        yield from self._named(zip(FFN, biases, strict=False), unit, bias=True)
        for name in beside(self.anatomy, self._axis(unit), unit):
            kept = best_share(match.similarity_after, share)
            yield name, choose_rows(kept, self.below[name][match.source], self.above[name])

    def aligned_rest(self, name: str) -> Tensor:
        """Return a tensor of A that belongs to no part, its heads, if it has any, in B's order."""
        tensor, spec, heads = self.below[name], self.anatomy.block[name], self.anatomy.heads
        match = self.heads
        if match is None or heads is None:
            return tensor
        for axis, label in enumerate(spec.axes):
            order = match.groups if label in _PER_GROUP else match.heads
            if label in (*_PER_GROUP, *_PER_HEAD):
                if spec.role in ATTENTION:
                    continue  # an output's bias
                parts = tensor.unflatten(axis, (len(order), -1)).index_select(axis, order)
                tensor = parts.flatten(axis, axis + 1)
        return tensor

    def _named(
        self, tensors: Iterator[tuple[Role, Tensor | None]], unit: str = "", *, bias: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """Give tensors, listed by role, their names; leave out what the block does not have."""
        for role, tensor in tensors:
            name = self.anatomy.name(role, unit, bias=bias)
            if name is not None and tensor is not None:
                yield name, tensor

    def _axis(self, unit: str) -> Axis | None:
        """Return the label of an FFN's neurons."""
        name = self.anatomy.name("up", unit)
        return self.anatomy.block[name].axes[0] if name else None


def match_pairs(
    model: Model,
    pairs: Iterable[Pair],
    device: torch.device,
    *,
    reg: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    similar: Mapping[Pair, Similarity] | None = None,
) -> dict[Pair, Matcher]:
    """Return a matcher for each pair of a model's blocks; see ``Matcher``."""
    return {
        (below, above): Matcher(
            model.block(below, device, fused=True),
            model.block(above, device, fused=True),
            model.anatomy.blocks[below],
            reg=reg,
            max_iterations=max_iterations,
            similarity=(similar or {}).get((below, above)),
        )
        for below, above in dict.fromkeys(pairs)
    }


def ffn_of(block: Block, anatomy: BlockAnatomy, unit: str, *, folded: bool = False) -> Ffn | None:
    """Read one FFN of a block; ``None`` if it has none of two or three matrices.

    Args:
        block: The block.
        anatomy: What it is made of.
        unit: Which FFN.
        folded: Whether the norm before it is folded into gate and up.
    """
    up, down = anatomy.name("up", unit), anatomy.name("ffn_output", unit)
    if up is None or down is None:
        return None
    norm: Role = "ffn_norm" if anatomy.name("ffn_norm") else "attention_norm"
    gate = anatomy.name("gate", unit)
    gates = (
        _linear(block, anatomy, "gate", unit, norm if folded else None) if gate else (None, None)
    )
    ups = _linear(block, anatomy, "up", unit, norm if folded else None)
    assert ups[0] is not None
    return Ffn(gates[0], ups[0], _wide(block[down]), gates[1], ups[1])


def attention_of(block: Block, anatomy: BlockAnatomy, *, folded: bool = False) -> Attention | None:
    """Read the attention of a block; ``None`` if it is not query, key, value and output.

    Args:
        block: The block.
        anatomy: What it is made of.
        folded: Whether the norm before it is folded into query, key and value.
    """
    heads, names = anatomy.heads, [anatomy.name(role) for role in ATTENTION]
    if heads is None or None in names:
        return None
    (query, query_bias), (key, key_bias), (value, value_bias) = (
        _linear(block, anatomy, role, "", "attention_norm" if folded else None)
        for role in ATTENTION[:3]
    )
    output = _wide(block[str(names[3])])
    assert query is not None
    assert key is not None
    assert value is not None
    sizes = heads.sizes
    found = (len(query), len(key), len(value), output.shape[1])
    if found != tuple(sizes[axis] for axis in ("query", "key_value", "value", "attended")):
        return None
    return Attention(
        query,
        key,
        value,
        output,
        heads.query,
        heads.key_value,
        Rotary(heads.rotary, heads.planes, heads.normed, heads.fixed),
        query_bias,
        key_bias,
        value_bias,
    )


def _linear(
    block: Block, anatomy: BlockAnatomy, role: Role, unit: str, norm: Role | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return a linear layer's weight and bias in float32, with the norm before it folded in."""
    name, bias_name = anatomy.name(role, unit), anatomy.name(role, unit, bias=True)
    assert name is not None
    if anatomy.block[name].axes[-1] != "residual":
        norm = None  # experts of a narrower space read what another weight makes of it
    weight = _wide(block[name])
    bias = _wide(block[bias_name]) if bias_name else None
    gain, shift = (anatomy.name(norm, bias=b) if norm else None for b in (False, True))
    if shift:
        moved = weight @ _wide(block[shift])
        bias = moved if bias is None else bias + moved
    if gain:
        weight = weight * (_wide(block[gain]) + anatomy.norm_offset)
    return weight, bias


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
