"""Which expert of the lower block corresponds to which of the upper one.

Experts have no order: a permutation of them, with the router's rows, leaves a block's function as
it is. So they are matched before anything is averaged, by what the router sends them and by what
they compute.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from deepen.anatomy import BlockAnatomy
from deepen.methods.base import Block

_PROBES = 8


class _Renumbered(Mapping[str, Tensor]):
    """A block whose expert i is another block's expert ``order[i]``, loaded on access."""

    def __init__(self, block: Block, anatomy: BlockAnatomy, order: list[int]) -> None:
        self._block, self._anatomy, self._order = block, anatomy, order

    def __getitem__(self, name: str) -> Tensor:
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
        return iter(self._block)

    def __len__(self) -> int:
        return len(self._block)


def matched_experts(below: Block, above: Block, anatomy: BlockAnatomy) -> Block:
    """Renumber the lower block's experts so that each stands where its match in the upper one does.

    The match is the exact assignment of largest total similarity: the cosine of the router's rows
    plus the cosine of the experts' signatures.

    Returns:
        The lower block; as it is if it has no experts.
    """
    if not anatomy.experts:
        return below
    from scipy.optimize import linear_sum_assignment

    similarity = _signatures(below, anatomy) @ _signatures(above, anatomy).T
    if router := anatomy.name("router"):
        rows = (torch.nn.functional.normalize(b[router].float()) for b in (below, above))
        similarity = similarity + next(rows) @ next(rows).T
    _, order = linear_sum_assignment(similarity.T.double().cpu().numpy(), maximize=True)
    return _Renumbered(below, anatomy, order.tolist())


def _signatures(block: Block, anatomy: BlockAnatomy) -> Tensor:
    """Return one unit vector for each expert, ``[experts, probes³]``, blind to its neurons' order.

    Σ over neurons of (gate·p)(up·q)(down·r) for all triples of a few fixed random directions p, q,
    r: a sketch of the cubic form that a gated FFN is where its activation is linear. The freedom to
    scale up by s and down by 1/s drops out.
    """
    roles = [
        role for role in ("gate", "up", "ffn_output") if anatomy.name(role, anatomy.experts[0])
    ]
    rows = []
    for expert in anatomy.experts:
        sketches = []
        for seed, role in enumerate(roles):
            name = anatomy.name(role, expert)
            assert name is not None
            weight = block[name].float()
            neurons = weight.T if role == "ffn_output" else weight  # [ffn, hidden]
            generator = torch.Generator().manual_seed(seed)
            probes = torch.randn(neurons.shape[1], _PROBES, generator=generator)
            sketches.append(neurons @ probes.to(neurons.device))
        total = sketches[0]
        for sketch in sketches[1:]:
            total = torch.einsum("n...,nk->n...k", total, sketch)
        rows.append(total.sum(0).flatten())
    return torch.nn.functional.normalize(torch.stack(rows))
