"""Matching the neurons of two feed-forward networks: one plan for gate, up and down together.

A gated FFN, down · (act(gate x) ⊙ up x), does not change when its neurons change places, or when a
row of up is multiplied and the column of down divided by any s ≠ 0. A plain FFN, down · act(up x),
has only the first of these. Whatever is found here moves an FFN along nothing else.

With unit vectors (or, if not ``scale_free``, vectors in units of their matrix's mean square), the
similarity of neuron i of A and j of B is the mean cosine of their parts,

    S_ij = (⟨gate_i, gate_j⟩ + |⟨up_i, up_j⟩ + ⟨down_i, down_j⟩|) / 3,

the sign σ_ij under the bars being that of s. It is three matrix products into one ``[n, n]``.
Weights and similarities are float32, norms float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepen.common.errors import DeepenError
from deepen.transport.alike import require_alike
from deepen.transport.assignment import assign, best_share, choose_rows
from deepen.transport.cost import in_range, in_units_of_spread
from deepen.transport.sinkhorn import stabilised

# Below this share of the largest norm, the up/down scale of a neuron is rounding, not information.
_DEAD = 1e-6


@dataclass(frozen=True)
class Ffn:
    """The weights of a feed-forward network; neurons are rows of gate and up, columns of down."""

    gate: Tensor | None
    """``[ffn, hidden]``, what the activation function sees; None if there is only up."""
    up: Tensor
    """``[ffn, hidden]``."""
    down: Tensor
    """``[hidden, ffn]``."""
    gate_bias: Tensor | None = None
    """``[ffn]``."""
    up_bias: Tensor | None = None
    """``[ffn]``."""


@dataclass(frozen=True)
class NeuronMatch:
    """Where A's neurons go, and in which gauge; made by ``match_ffn``."""

    source: Tensor
    """``[ffn]`` int64: for every neuron of B the neuron of A that goes there, or most of which."""
    sign: Tensor
    """``[ffn]`` ±1: sign of the up/down scale on the way from ``source``."""
    balance_below: Tensor
    """``[ffn]`` float64: the scale s > 0 at which A's up row and down column have equal norms."""
    balance_above: Tensor
    """``[ffn]`` float64: the same for B."""
    plan: Tensor | None
    """``[ffn, ffn]``: n·T ⊙ σ of an entropic plan, absolute columns sum to 1; None if exact."""
    marginal_error: float
    """How far the plan's rows are from 1/n in sum; 0 if exact."""
    similarity_before: Tensor
    """``[ffn]``: signed similarity of A's and B's neurons of the same index."""
    similarity_after: Tensor
    """``[ffn]``: similarity of B's neurons with what is matched to them."""
    similarity_best: Tensor
    """``[ffn]``: similarity of B's neurons with the nearest one of A, which others may share."""


def match_ffn(
    a: Ffn,
    b: Ffn,
    *,
    reg: float | None = None,
    similarity: Tensor | None = None,
    scale_free: bool = True,
    max_iterations: int = 10_000,
) -> NeuronMatch:
    """Match A's neurons to B's.

    Args:
        a: Lower block's FFN, the norm's gain folded into the columns of gate and up.
        b: Upper block's FFN, likewise.
        reg: None for the exact assignment; otherwise entropic regularisation, in units of the
            spread of the cost 1 - S.
        similarity: ``[ffn, ffn]`` to be used instead of the weights', for example correlations of
            activations; its signs are signs of s where there is a gate.
        scale_free: Whether every part of every neuron counts as a unit vector. Otherwise strong
            neurons weigh more.
        max_iterations: Upper limit of Sinkhorn iterations.

    Raises:
        DeepenError: The two differ in shape, or hold values that are not finite.
    """
    _check(a, b, similarity)
    before, joint, flipped = (
        _weight_similarity(a, b, scale_free)
        if similarity is None
        else _given_similarity(similarity, gated=a.gate is not None)
    )
    best, columns = joint.amax(0), torch.arange(len(joint), device=joint.device)
    if reg is None:
        plan, error = None, 0.0
        source = assign(joint.neg_())
        after = -joint[source, columns]
    else:
        solved = stabilised(in_units_of_spread(1 - joint), reg, max_iterations)
        plan, error = solved.plan.mul_(len(joint)), solved.marginal_error
        source = plan.argmax(0)
        after = torch.einsum("ij,ij->j", plan, joint)
        if flipped is not None:
            plan = torch.where(flipped, -plan, plan)
    sign = torch.ones_like(after)
    if flipped is not None:
        sign[flipped[source, columns]] = -1
    return NeuronMatch(source, sign, *_balances(a, b), plan, error, before, after, best)


def apply_ffn(match: NeuronMatch, a: Ffn) -> Ffn:
    """Move A's neurons to where they were matched, in B's gauge.

    The result can be averaged with B. An exact match leaves A's function unchanged, also when A is
    given here with its norm's gain unfolded; an entropic plan gives the barycentric projection.

    Returns:
        Weights in A's precision, at least float32.
    """
    if match.plan is None:
        return _permuted(match, a)
    plan = match.plan.to(torch.promote_types(a.up.dtype, torch.float32))
    shares = plan.abs()
    below, above = match.balance_below.to(plan.dtype), match.balance_above.to(plan.dtype)
    return Ffn(
        gate=None if a.gate is None else shares.T @ a.gate.to(plan.dtype),
        up=plan.T @ (a.up * below[:, None]) / above[:, None],
        down=(a.down / below) @ plan * above,
        gate_bias=None if a.gate_bias is None else a.gate_bias.to(plan.dtype) @ shares,
        up_bias=None if a.up_bias is None else (a.up_bias * below) @ plan / above,
    )


def keep_neurons(match: NeuronMatch, moved: Ffn, b: Ffn, share: float) -> Ffn:
    """Keep the best matched neurons of an aligned A, and put B's own in the place of the others.

    Args:
        match: How A was matched to B.
        moved: A, aligned.
        b: The upper block's FFN.
        share: Share of the neurons that is kept, rounded to whole ones.
    """
    kept = best_share(match.similarity_after, share)

    def mixed(mine: Tensor | None, own: Tensor | None) -> Tensor | None:
        return None if mine is None or own is None else choose_rows(kept, mine, own)

    return Ffn(
        gate=mixed(moved.gate, b.gate),
        up=choose_rows(kept, moved.up, b.up),
        down=choose_rows(kept, moved.down.T, b.down.T).T.contiguous(),
        gate_bias=mixed(moved.gate_bias, b.gate_bias),
        up_bias=mixed(moved.up_bias, b.up_bias),
    )


def _permuted(match: NeuronMatch, a: Ffn) -> Ffn:
    """Apply an exact match: gather neurons, then scale up and down."""
    work = torch.promote_types(a.up.dtype, torch.float32)
    to = match.source
    factor = (match.sign * match.balance_below[to] / match.balance_above).to(work)

    def moved(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows[to].to(work)

    return Ffn(
        gate=moved(a.gate),
        up=a.up[to].to(work) * factor[:, None],
        down=a.down[:, to].to(work) / factor,
        gate_bias=moved(a.gate_bias),
        up_bias=None if a.up_bias is None else a.up_bias[to].to(work) * factor,
    )


def _weight_similarity(a: Ffn, b: Ffn, scale_free: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return S as it is on the diagonal, S ``[n, n]`` at the best signs, and where s < 0."""
    (gate_a, *rest_a), (gate_b, *rest_b) = _parts(a, scale_free), _parts(b, scale_free)
    joint = rest_a[0] @ rest_b[0].T
    for x, y in zip(rest_a[1:], rest_b[1:], strict=True):
        joint.addmm_(x, y.T)
    before = joint.diagonal().clone()
    if gate_a is None or gate_b is None:
        return before, joint, None
    flipped = joint < 0
    joint.abs_().addmm_(gate_a, gate_b.T)
    return before + (gate_a * gate_b).sum(1), joint, flipped


def _given_similarity(similarity: Tensor, gated: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the same for a similarity from elsewhere, which stays as it is."""
    joint = similarity.float()
    before = joint.diagonal().clone()
    return (before, joint.abs(), joint < 0) if gated else (before, joint.clone(), None)


def _parts(ffn: Ffn, scale_free: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return gate, up and down as rows per neuron, balanced and normalised, ready to multiply."""
    weight = (2 if ffn.gate is None else 3) ** -0.5
    scale = _balance(ffn)[0].float()[:, None]
    gate = None if ffn.gate is None else _normal(_rows(ffn.gate, ffn.gate_bias), scale_free)
    up = _normal(_rows(ffn.up, ffn.up_bias) * scale, scale_free)
    down = _normal(ffn.down.T.float() / scale, scale_free)
    return None if gate is None else gate.mul_(weight), up.mul_(weight), down.mul_(weight)


def _normal(rows: Tensor, scale_free: bool) -> Tensor:
    """Divide rows by their norms, or by the root mean square of all norms; zeros stay zero."""
    rows = in_range(rows)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = norms if scale_free else norms.square().mean().sqrt()
    return rows / torch.where(unit > 0, unit, 1)


def _rows(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the rows of a weight in float32, a bias being one more input."""
    return weight.float() if bias is None else torch.cat([weight, bias[:, None]], dim=1).float()


def _balances(a: Ffn, b: Ffn) -> tuple[Tensor, Tensor]:
    """Return the balancing scales of both, all ones if either cannot tell (a down of zeros)."""
    (below, tells_below), (above, tells_above) = _balance(a), _balance(b)
    if tells_below and tells_above:
        return below, above
    return torch.ones_like(below), torch.ones_like(above)


def _balance(ffn: Ffn) -> tuple[Tensor, bool]:
    """Return s ``[ffn]`` with ‖s·up‖ = ‖down / s‖, and whether any neuron determines it.

    Dead neurons, whose s is undetermined, get the geometric mean of the others.
    """
    up = torch.linalg.vector_norm(_rows(ffn.up, ffn.up_bias), dim=1, dtype=torch.float64)
    down = torch.linalg.vector_norm(ffn.down, dim=0, dtype=torch.float64)
    alive = (up > _DEAD * up.max()) & (down > _DEAD * down.max())
    if ffn.gate is None or not alive.any():
        return torch.ones_like(up), False
    logs = (down[alive].log() - up[alive].log()) / 2
    scale = logs.mean().exp().expand_as(up).clone()
    scale[alive] = logs.exp()
    return scale, True


def _check(a: Ffn, b: Ffn, similarity: Tensor | None) -> None:
    """Refuse what cannot be matched."""
    require_alike(a, b, "FFNs")
    n = len(a.up)
    if similarity is not None and (similarity.shape != (n, n) or not similarity.isfinite().all()):
        raise DeepenError(
            f"A similarity of {list(similarity.shape)} does not fit {n} neurons; give one finite "
            "value for every pair."
        )
