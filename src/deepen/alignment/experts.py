"""Which expert of the lower block corresponds to which of the upper one.

Experts have no order: a permutation of them, with the router's rows, leaves a block's function as
it is. So they are matched before anything is averaged, by what the router sends them and by what
they compute. Where the router first chooses among groups of experts, only permutations that keep
the groups together leave the function as it is: groups are matched, and experts inside them.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from deepen.base.anatomy import Block, BlockAnatomy, Role
from deepen.common.errors import DeepenError
from deepen.transport.assignment import assign
from deepen.transport.cost import in_range

_PROBES = 16
_FFN: tuple[Role, ...] = ("gate", "up", "ffn_output")


class Renumbered(Mapping[str, Tensor]):
    """A block whose expert i is another block's expert ``order[i]``, loaded on access."""

    def __init__(self, block: Block, anatomy: BlockAnatomy, order: list[int]) -> None:
        """Load nothing yet."""
        self._block, self._anatomy, self._order = block, anatomy, order

    def __getitem__(self, name: str) -> Tensor:
        """Load a tensor of the expert that belongs here."""
        spec = self._anatomy.block[name]
        if spec.unit.isdigit():
            source = self._anatomy.name(spec.role, str(self._order[int(spec.unit)]), bias=spec.bias)
            assert source is not None
            return self._block[source]
        tensor = self._block[name]
        for axis, label in enumerate(spec.axes):
            if label == "expert":
                tensor = tensor.index_select(axis, torch.tensor(self._order, device=tensor.device))
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of its tensors."""
        return iter(self._block)

    def __len__(self) -> int:
        """Return the number of its tensors."""
        return len(self._block)


def matched_experts(below: Block, above: Block, anatomy: BlockAnatomy) -> Block:
    """Renumber the lower block's experts so that each stands where its match in the upper one does.

    Everything that has an entry per expert moves with them: router, biases, corrections.

    Returns:
        The lower block, its tensors still loaded on access; as it is if it has no experts.

    Raises:
        DeepenError: A router has rows for experts that the checkpoint lacks.
    """
    if not anatomy.experts:
        return below
    return Renumbered(below, anatomy, expert_order(below, above, anatomy).tolist())


def expert_order(below: Block, above: Block, anatomy: BlockAnatomy) -> Tensor:
    """Match experts by the exact assignment of largest total similarity.

    Returns:
        ``[experts]``: for every expert of the upper block the one of the lower that matches it.

    Raises:
        DeepenError: A router has rows for experts that the checkpoint lacks.
    """
    similarity = expert_similarity(below, above, anatomy)
    return assigned_in_groups(similarity, anatomy.sizes.get("expert_groups", 1))


def expert_similarity(below: Block, above: Block, anatomy: BlockAnatomy) -> Tensor:
    """Compare all experts of two blocks, their norm's gain folded in.

    Returns:
        ``[experts, experts]``, from the lower block's to the upper one's: the cosine of the
        router's rows plus the cosine of the experts' signatures.

    Raises:
        DeepenError: A router has rows for experts that the checkpoint lacks.
    """
    similarity = _signatures(below, anatomy) @ _signatures(above, anatomy).T
    if router := anatomy.name("router"):
        lower, upper = (_folded(block, anatomy, router) for block in (below, above))
        if len(lower) != len(similarity):
            raise DeepenError(
                f"The router {router!r} has {len(lower)} rows for {len(similarity)} experts; "
                f"fetch or export the checkpoint again."
            )
        similarity += normalize(lower) @ normalize(upper).T
    return similarity


def assigned_in_groups(similarity: Tensor, groups: int) -> Tensor:
    """Assign experts one to one, keeping groups of neighbours together.

    Args:
        similarity: ``[experts, experts]``, from the lower block's to the upper one's.
        groups: Number of groups, all of one size.

    Returns:
        ``[experts]``: for every column the row that it gets. Of all assignments that map each group
        onto one group, the one of largest total similarity: the best inside every pair of groups,
        then the best of the groups.
    """
    if groups == 1:
        return assign(-similarity)
    size = len(similarity) // groups
    blocks = similarity.unflatten(1, (groups, size)).unflatten(0, (groups, size)).transpose(1, 2)
    inside = [[assign(-block) for block in row] for row in blocks]
    columns = torch.arange(size, device=similarity.device)
    totals = [
        torch.stack([block[order, columns].sum() for block, order in zip(*rows, strict=True)])
        for rows in zip(blocks, inside, strict=True)
    ]
    sources = assign(-torch.stack(totals)).tolist()
    orders = [lower * size + inside[lower][upper] for upper, lower in enumerate(sources)]
    return torch.cat(orders)


def _folded(block: Block, anatomy: BlockAnatomy, name: str) -> Tensor:
    """Return a weight, times the norm's gain if it reads the normed stream ``[out, hidden]``."""
    weight = block[name].float()
    norm = anatomy.name("ffn_norm") or anatomy.name("attention_norm")
    if norm is None or anatomy.block[name].axes[-1] != "residual":
        return weight
    return weight * (block[norm].float() + anatomy.norm_offset)


def _signatures(block: Block, anatomy: BlockAnatomy) -> Tensor:
    """Return one unit vector for each expert, ``[experts, probes³]``, blind to its neurons' order.

    Σ over neurons of (gate·p)(up·q)(down·r) for all triples of a few fixed random directions p, q,
    r: a sketch of the cubic form that a gated FFN is where its activation is linear. The freedom to
    scale up by s and down by 1/s drops out. Experts without a gate have probes² entries.
    """
    rows = []
    for expert in anatomy.experts:
        sketches = []
        for seed, role in enumerate(_FFN):
            name = anatomy.name(role, expert)
            if name is None:
                continue
            down = role == "ffn_output"
            neurons = block[name].float().T if down else _folded(block, anatomy, name)
            generator = torch.Generator().manual_seed(seed)
            probes = torch.randn(neurons.shape[1], _PROBES, generator=generator)
            sketches.append(in_range(neurons @ probes.to(neurons.device)))  # [ffn, probes]
        *first, last = sketches
        pairs = (
            first[0] if len(first) == 1 else (first[0][:, :, None] * first[1][:, None]).flatten(1)
        )
        rows.append((pairs.T @ last).flatten())
    return normalize(torch.stack(rows))
