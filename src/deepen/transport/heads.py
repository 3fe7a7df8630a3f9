"""Matching the heads of two attentions by what no choice of basis inside a head can change.

Attention does not change when KV groups change places (with all their query heads), when query
heads do inside their group, and under the maps of ``gauge`` inside a group. Whatever is found here
moves an attention along nothing else.

Heads are compared by ``invariants``. Assignments are nested: heads inside every pair of groups,
then groups. Similarities are float32, everything inside a head float64.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepen.common.errors import DeepenError
from deepen.transport import gauge
from deepen.transport.alike import require_alike
from deepen.transport.assignment import assign, best_share, choose_rows
from deepen.transport.gauge import Planes
from deepen.transport.invariants import Heads, head_similarity


@dataclass(frozen=True)
class Rotary:
    """How positions enter the attention."""

    dims: int = 0
    """Leading dims of every head that a rotary embedding rotates; 0: none (GPT-2, BLOOM, NoPE)."""
    planes: Planes = "half"
    """They are (i, i + dims/2) if `half` (Llama, GPT-NeoX), (2i, 2i+1) if `adjacent` (GPT-J)."""
    normed: bool = False
    """Queries and keys are normalised (Qwen3): they are left alone inside a head."""
    fixed_heads: bool = False
    """Positions enter every head in its own way (ALiBi's slopes): heads stay where they are."""


@dataclass(frozen=True)
class Attention:
    """The weights of an attention; query head h belongs to KV group h // (heads / kv_heads)."""

    query: Tensor
    """``[heads·d, hidden]``."""
    key: Tensor
    """``[kv_heads·d, hidden]``."""
    value: Tensor
    """``[kv_heads·v, hidden]``."""
    output: Tensor
    """``[hidden, heads·v]``."""
    heads: int
    """Number of query heads H."""
    kv_heads: int
    """Number of KV groups K."""
    rotary: Rotary
    """How positions enter."""
    query_bias: Tensor | None = None
    """``[heads·d]``."""
    key_bias: Tensor | None = None
    """``[kv_heads·d]``."""
    value_bias: Tensor | None = None
    """``[kv_heads·v]``."""


@dataclass(frozen=True)
class HeadMatch:
    """Where A's heads go, and in which gauge; made by ``match_attention``."""

    groups: Tensor
    """``[kv_heads]`` int64: for every KV group of B the one of A that goes there."""
    heads: Tensor
    """``[heads]`` int64: the same for query heads; permutes what else there is one of per head."""
    key: Tensor
    """``[kv_heads, d, d]`` float64: the map T of the keys that arrive; queries get T⁻ᵀ."""
    value: Tensor
    """``[kv_heads, v, v]`` float64: the map T of the values that arrive; output columns T⁻ᵀ."""
    similarity: Tensor
    """``[heads, heads]``: similarity of A's heads (rows) and B's, -1 to 1."""


def match_attention(a: Attention, b: Attention, *, similarity: Tensor | None = None) -> HeadMatch:
    """Match A's KV groups and query heads to B's, and the bases inside them.

    Args:
        a: Lower block's attention, the norm's gain folded into the columns of query, key, value.
        b: Upper block's attention, likewise.
        similarity: ``[heads, heads]`` to be used instead of the weights' for matching heads, for
            example correlations of what heads write; bases inside heads come from the weights.

    Raises:
        DeepenError: The two differ in shape, or their sizes do not belong together.
    """
    _check(a, b, similarity)
    parts_a, parts_b = _by_head(a), _by_head(b)
    if similarity is None:
        similarity = head_similarity(parts_a, parts_b, a.rotary.dims, a.rotary.planes)
    groups, heads = _nested(similarity, a.kv_heads)
    if a.rotary.fixed_heads:
        groups, heads = torch.arange(a.kv_heads), torch.arange(a.heads)
    ends = torch.arange(a.heads).unflatten(0, (a.kv_heads, -1))
    keys, values = [], []
    for to, origin in enumerate(groups.tolist()):
        below = _group(parts_a, origin, heads[ends[to]])
        above = _group(parts_b, to, ends[to])
        keys.append(_key_map(below, above, a.rotary))
        values.append(gauge.linear_map(below.value, below.output, above.value, above.output))
    device = a.query.device
    return HeadMatch(
        groups.to(device), heads.to(device), torch.stack(keys), torch.stack(values), similarity
    )


def apply_attention(match: HeadMatch, a: Attention) -> Attention:
    """Move A's heads to where they were matched, in B's gauge; A's function stays what it is.

    A may be given with its norm's gain unfolded.

    Returns:
        Weights in A's precision, at least float32.
    """
    work = torch.promote_types(a.query.dtype, torch.float32)
    per_head = a.heads // a.kv_heads

    def push(rows: Tensor, source: Tensor, maps: Tensor) -> Tensor:
        split = rows.to(work).unflatten(0, (len(source), -1))[source]
        flat = split.ndim == 2
        moved = maps.to(work) @ (split[..., None] if flat else split)
        return (moved[..., 0] if flat else moved).flatten(0, 1)

    def push_bias(bias: Tensor | None, source: Tensor, maps: Tensor) -> Tensor | None:
        return None if bias is None else push(bias, source, maps)

    query_maps, output_maps = (
        torch.linalg.inv(maps).mT.repeat_interleave(per_head, 0)
        for maps in (match.key, match.value)
    )
    return replace(
        a,
        query=push(a.query, match.heads, query_maps),
        key=push(a.key, match.groups, match.key),
        value=push(a.value, match.groups, match.value),
        output=push(a.output.T, match.heads, output_maps).T.contiguous(),
        query_bias=push_bias(a.query_bias, match.heads, query_maps),
        key_bias=push_bias(a.key_bias, match.groups, match.key),
        value_bias=push_bias(a.value_bias, match.groups, match.value),
    )


def keep_groups(match: HeadMatch, moved: Attention, b: Attention, share: float) -> Attention:
    """Keep the best matched KV groups of an aligned A, and put B's own in the others' place.

    Args:
        match: How A was matched to B.
        moved: A, aligned.
        b: The upper block's attention.
        share: Share of the groups that is kept, rounded to whole ones; a group is as well matched
            as its query heads are on average.
    """
    columns = torch.arange(moved.heads)
    matched = match.similarity.cpu()[match.heads.cpu(), columns].unflatten(0, (moved.kv_heads, -1))
    kept = best_share(matched.mean(1), share).to(moved.query.device)

    def mixed(rows: Tensor, own: Tensor) -> Tensor:
        return choose_rows(kept.repeat_interleave(len(rows) // moved.kv_heads), rows, own)

    def mixed_bias(bias: Tensor | None, own: Tensor | None) -> Tensor | None:
        return None if bias is None or own is None else mixed(bias, own)

    return replace(
        moved,
        query=mixed(moved.query, b.query),
        key=mixed(moved.key, b.key),
        value=mixed(moved.value, b.value),
        output=mixed(moved.output.T, b.output.T).T.contiguous(),
        query_bias=mixed_bias(moved.query_bias, b.query_bias),
        key_bias=mixed_bias(moved.key_bias, b.key_bias),
        value_bias=mixed_bias(moved.value_bias, b.value_bias),
    )


def _nested(similarity: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Assign heads inside every pair of groups, then groups; return both, on the CPU."""
    per_group = len(similarity) // groups
    pairs = similarity.detach().cpu().unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
    inside = torch.empty(groups, groups, per_group, dtype=torch.int64)
    value = torch.empty(groups, groups)
    columns = torch.arange(per_group)
    for i in range(groups):
        for j in range(groups):
            inside[i, j] = assign(-pairs[i, :, j])
            value[i, j] = pairs[i, inside[i, j], j, columns].sum()
    chosen = assign(-value)
    heads = chosen[:, None] * per_group + inside[chosen, torch.arange(groups)]
    return chosen, heads.flatten()


def _key_map(a: Heads, b: Heads, rotary: Rotary) -> Tensor:
    """Return T ``[d, d]`` of one group's keys: planes where they are rotated, GL elsewhere."""
    head_dim, turned = a.key.shape[0], rotary.dims
    whole = torch.eye(head_dim, dtype=torch.float64, device=a.key.device)
    if rotary.normed:
        return whole
    if turned:
        rows = (x.double() for x in (a.key, a.query, b.key, b.query))
        factors = gauge.plane_factors(*(gauge.to_planes(x, turned, rotary.planes) for x in rows))
        whole = gauge.plane_map(factors, head_dim, rotary.planes)
    if turned < head_dim:
        still = (x[..., turned:, :] for x in (a.key, a.query, b.key, b.query))
        whole[turned:, turned:] = gauge.linear_map(*still)
    return whole


def _group(parts: Heads, group: int, heads: Tensor) -> Heads:
    """Return one KV group: key and value ``[d, hidden]``, and of these query heads the rest."""
    heads = heads.to(parts.query.device)
    return Heads(parts.query[heads], parts.key[group], parts.value[group], parts.output[heads])


def _by_head(attention: Attention) -> Heads:
    """Return the rows of every head, biases as one more column."""

    def split(name: str, parts: int) -> Tensor:
        weight, bias = getattr(attention, name), getattr(attention, f"{name}_bias")
        rows = weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)
        return rows.unflatten(0, (parts, -1))

    return Heads(
        split("query", attention.heads),
        split("key", attention.kv_heads),
        split("value", attention.kv_heads),
        attention.output.T.unflatten(0, (attention.heads, -1)),
    )


def _check(a: Attention, b: Attention, similarity: Tensor | None) -> None:
    """Refuse what cannot be matched."""
    require_alike(a, b, "attentions")
    sizes = {"query": a.heads, "key": a.kv_heads, "value": a.kv_heads}
    head_dim = len(a.query) // a.heads
    if (
        a.heads % a.kv_heads
        or any(len(getattr(a, name)) % parts for name, parts in sizes.items())
        or len(a.key) != head_dim * a.kv_heads
        or a.output.shape[1] != len(a.value) // a.kv_heads * a.heads
        or a.rotary.dims % 2
        or not 0 <= a.rotary.dims <= head_dim
    ):
        raise DeepenError(
            f"An attention of query {list(a.query.shape)}, key {list(a.key.shape)}, value "
            f"{list(a.value.shape)} and output {list(a.output.shape)} does not divide into "
            f"{a.heads} heads in {a.kv_heads} groups with {a.rotary.dims} rotary dims; check the "
            "config."
        )
    n = a.heads
    if similarity is not None and (similarity.shape != (n, n) or not similarity.isfinite().all()):
        raise DeepenError(
            f"A similarity of {list(similarity.shape)} does not fit {n} heads; give one finite "
            "value for every pair."
        )
