"""FFN matching: scrambled copies are recovered, functions kept, noise withstood."""

from dataclasses import fields, replace

import pytest
import torch
from torch.nn.functional import silu

import oracles
from deepen.common.errors import DeepenError
from deepen.transport.neurons import Ffn, apply_ffn, match_ffn

N, HIDDEN = 37, 23


def _ffn(seed, *, gated=True, biased=False, n=N, hidden=HIDDEN, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Ffn(
        gate=normal(n, hidden) if gated else None,
        up=normal(n, hidden),
        down=normal(hidden, n),
        gate_bias=normal(n) if gated and biased else None,
        up_bias=normal(n) if biased else None,
    )


def _forward(ffn, x):
    """Compute down · (silu(gate x + b) ⊙ (up x + c)), or down · silu(up x + c), token by token."""
    outputs = []
    for token in x:
        up = ffn.up @ token if ffn.up_bias is None else ffn.up @ token + ffn.up_bias
        hidden = silu(up)
        if ffn.gate is not None:
            gate = ffn.gate @ token
            hidden = silu(gate if ffn.gate_bias is None else gate + ffn.gate_bias) * up
        outputs.append(ffn.down @ hidden)
    return torch.stack(outputs)


def _scrambled(ffn, *, moved=True, scaled=True, flipped=True, seed=9):
    """Move neurons and change up/down scales, all of which leaves the function alone."""
    generator = torch.Generator().manual_seed(seed)
    n = len(ffn.up)
    order = torch.randperm(n, generator=generator) if moved else torch.arange(n)
    scale = torch.ones(n, dtype=torch.float64)
    if scaled and ffn.gate is not None:
        scale *= torch.exp(torch.randn(n, generator=generator, dtype=torch.float64))
    if flipped and ffn.gate is not None:
        scale *= 2 * torch.randint(2, (n,), generator=generator) - 1
    new = {}
    for field in fields(Ffn):
        tensor = getattr(ffn, field.name)
        if tensor is None:
            continue
        tensor = tensor.double().index_select(1 if field.name == "down" else 0, order)
        if field.name in ("up", "up_bias"):
            tensor = torch.stack([row * s for row, s in zip(tensor, scale, strict=True)])
        if field.name == "down":
            tensor = tensor / scale
        new[field.name] = tensor.to(ffn.up.dtype)
    return replace(ffn, **new)


def _largest_difference(one, other):
    return max(
        oracles.relative_error(getattr(one, field.name), getattr(other, field.name))
        for field in fields(Ffn)
        if getattr(other, field.name) is not None
    )


def _noisy(tensor, cosine, seed):
    """Add noise until the cosine with the original is about this."""
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return cosine * tensor + (1 - cosine**2) ** 0.5 * tensor.std() * noise


SYMMETRIES = {
    "moved": {"scaled": False, "flipped": False},
    "scaled": {"moved": False, "flipped": False},
    "flipped": {"moved": False, "scaled": False},
    "all": {},
}


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("scale_free", [True, False], ids=["scale-free", "scaled"])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_a_scrambled_copy_is_recovered(symmetry, scale_free, gated, biased):
    a = _ffn(1, gated=gated, biased=biased)
    b = _scrambled(a, **SYMMETRIES[symmetry])
    aligned = apply_ffn(match_ffn(a, b, scale_free=scale_free), a)
    assert _largest_difference(aligned, b) < 1e-5
    if gated or symmetry in ("moved", "all"):
        assert _largest_difference(a, b) > 0.1, "nothing was scrambled"


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("scale_free", [True, False], ids=["scale-free", "scaled"])
def test_aligning_to_another_block_keeps_the_function(gated, biased, scale_free):
    a, b = (_ffn(seed, gated=gated, biased=biased, dtype=torch.float64) for seed in (1, 2))
    x = torch.randn(11, HIDDEN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    match = match_ffn(a, b, scale_free=scale_free)
    aligned = apply_ffn(match, a)
    assert not torch.equal(match.source, torch.arange(N))
    assert (_forward(aligned, x) - _forward(a, x)).abs().max() < 1e-10 * _forward(a, x).abs().max()


def test_a_match_of_folded_weights_moves_the_originals():
    gain_a, gain_b = (1 + 0.3 * torch.rand(2, HIDDEN, dtype=torch.float64)).unbind()
    a, b = (_ffn(seed, dtype=torch.float64) for seed in (1, 2))
    folded_a, folded_b = (
        replace(ffn, gate=ffn.gate * gain, up=ffn.up * gain)
        for ffn, gain in ((a, gain_a), (b, gain_b))
    )
    match = match_ffn(folded_a, folded_b)
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    aligned = apply_ffn(match, a)
    torch.testing.assert_close(_forward(aligned, x), _forward(a, x), rtol=1e-10, atol=1e-10)
    refolded = replace(aligned, gate=aligned.gate * gain_a, up=aligned.up * gain_a)
    assert _largest_difference(apply_ffn(match, folded_a), refolded) < 1e-12


def test_the_result_has_the_balance_of_the_upper_block():
    a, b = _scrambled(_ffn(1), seed=4), _scrambled(_ffn(2), seed=5)
    aligned = apply_ffn(match_ffn(a, b), a)
    ratios = [ffn.up.norm(dim=1) / ffn.down.norm(dim=0) for ffn in (aligned, b)]
    torch.testing.assert_close(*ratios, rtol=1e-4, atol=0)
    signs = (aligned.up * b.up).sum(1) / b.up.norm(dim=1) / aligned.up.norm(dim=1)
    signs += (aligned.down * b.down).sum(0) / b.down.norm(dim=0) / aligned.down.norm(dim=0)
    assert (signs > 0).all()


def test_the_similarity_is_the_mean_cosine_of_the_parts():
    a, b = _ffn(1, n=7, biased=True), _ffn(2, n=7, biased=True)
    match = match_ffn(a, b)
    rows_a, rows_b = (
        [torch.column_stack([f.gate, f.gate_bias]), torch.column_stack([f.up, f.up_bias]), f.down.T]
        for f in (a, b)
    )

    def parts(i, j):
        return [
            float(x[i] @ y[j] / x[i].norm() / y[j].norm())
            for x, y in zip(rows_a, rows_b, strict=True)
        ]

    def joint(i, j):
        gate, up, down = parts(i, j)
        return (gate + abs(up + down)) / 3

    for j, i in enumerate(match.source.tolist()):
        assert match.similarity_before[j] == pytest.approx(sum(parts(j, j)) / 3, abs=1e-6)
        assert match.similarity_after[j] == pytest.approx(joint(i, j), abs=1e-6)
        best = max(joint(k, j) for k in range(7))
        assert match.similarity_best[j] == pytest.approx(best, abs=1e-6)
        assert match.sign[j] == (1 if sum(parts(i, j)[1:]) > 0 else -1)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_scale_free_matching_does_not_see_the_strength_of_neurons(gated):
    a, b = _ffn(1, gated=gated), _ffn(2, gated=gated)
    strength = torch.exp(2 * torch.randn(N, generator=torch.Generator().manual_seed(7)))
    strong = replace(a, up=a.up * strength[:, None])
    assert torch.equal(match_ffn(strong, b).source, match_ffn(a, b).source)
    if gated:
        louder = replace(a, gate=a.gate * strength[:, None])
        assert torch.equal(match_ffn(louder, b).source, match_ffn(a, b).source)
        scaled = [match_ffn(ffn, b, scale_free=False).source for ffn in (louder, a)]
        assert not torch.equal(*scaled)


def test_the_similarity_without_a_gate_is_the_mean_of_two():
    a, b = _ffn(1, gated=False), _ffn(2, gated=False)
    match = match_ffn(a, b)
    i, j = int(match.source[4]), 4
    pairs = (a.up[i], b.up[j]), (a.down[:, i], b.down[:, j])
    expected = sum(float(x @ y / x.norm() / y.norm()) for x, y in pairs) / 2
    assert match.similarity_after[j] == pytest.approx(expected, abs=1e-6)


def test_the_up_down_scale_is_fixed_before_strengths_are_compared():
    a, b = _ffn(1), _ffn(2)
    plain, scaled = (
        match_ffn(x, b, scale_free=False) for x in (a, _scrambled(a, moved=False, flipped=False))
    )
    assert torch.equal(scaled.source, plain.source)
    torch.testing.assert_close(scaled.similarity_after, plain.similarity_after)


def test_a_soft_plan_of_a_copy_is_sharp_and_recovers_it():
    a = _ffn(1, hidden=64, biased=True)
    b = _scrambled(a)
    match = match_ffn(a, b, reg=0.06)
    assert match.marginal_error < 1e-2
    assert _largest_difference(apply_ffn(match, a), b) < 1e-3
    assert torch.equal(match.source, match_ffn(a, b).source)
    assert torch.equal(match.sign, match_ffn(a, b).sign)


def test_a_soft_plan_is_the_barycentric_projection():
    a, b = _ffn(1, biased=True), _ffn(2, biased=True)
    match = match_ffn(a, b, reg=0.5)
    torch.testing.assert_close(match.plan.abs().sum(0), torch.ones(N))
    assert (match.plan < 0).any()
    aligned = apply_ffn(match, a)
    torch.testing.assert_close(aligned.gate, match.plan.abs().T @ a.gate)
    j = 5
    scale = match.balance_below.float() / match.balance_above[j].float()
    torch.testing.assert_close(aligned.up[j], (match.plan[:, j] * scale) @ a.up)
    torch.testing.assert_close(aligned.up_bias[j], (match.plan[:, j] * scale) @ a.up_bias)
    torch.testing.assert_close(aligned.down[:, j], a.down @ (match.plan[:, j] / scale))


def test_a_given_similarity_decides_the_match_and_the_signs():
    a, b = _ffn(1), _ffn(2)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    signs = (torch.arange(N) % 2 * 2 - 1).float()
    given = 0.1 * torch.rand(N, N, generator=torch.Generator().manual_seed(2))
    given[order, torch.arange(N)] = 0.5 * signs
    before = given.clone()
    match = match_ffn(a, b, similarity=given)
    assert torch.equal(match.source, order)
    assert torch.equal(match.sign, signs)
    assert torch.equal(given, before)
    aligned = apply_ffn(match, a)
    assert ((aligned.up * a.up[order]).sum(1).sign() == signs).all()


def test_a_given_similarity_has_no_signs_without_a_gate():
    a, b = _ffn(1, gated=False), _ffn(2, gated=False)
    given = torch.zeros(N, N) - torch.eye(N)
    match = match_ffn(a, b, similarity=given)
    assert (match.source != torch.arange(N)).all()
    assert (match.sign == 1).all()


ZEROED = {
    "below silent": (("down",), ()),
    "above silent": ((), ("down",)),
    "both silent": (("down",), ("down",)),
    "below empty": (("gate", "up", "down"), ()),
    "both empty": (("gate", "up", "down"), ("gate", "up", "down")),
}


@pytest.mark.parametrize("reg", [None, 0.1])
@pytest.mark.parametrize("case", ZEROED)
def test_zeros_determine_nothing_and_break_nothing(case, reg):
    a, b = _ffn(1, dtype=torch.float64), _ffn(2, dtype=torch.float64)
    for ffn, names in zip((a, b), ZEROED[case], strict=True):
        for name in names:
            getattr(ffn, name).zero_()
    match = match_ffn(a, b, reg=reg)
    aligned = apply_ffn(match, a)
    for field in fields(Ffn):
        tensor = getattr(aligned, field.name)
        assert tensor is None or torch.isfinite(tensor).all()
    if reg is None:
        assert torch.equal(aligned.up.abs(), a.up[match.source].abs()), "s was not determined"
    if case == "both empty" and reg is None:
        assert torch.equal(match.source, torch.arange(N))


def test_dead_neurons_keep_the_function_finite_and_unchanged():
    a, b = _ffn(1, dtype=torch.float64), _ffn(2, dtype=torch.float64)
    a.up[:5], a.down[:, 5:9], b.down[:, 10:20] = 0, 0, 1e-30
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    aligned = apply_ffn(match_ffn(a, b), a)
    torch.testing.assert_close(_forward(aligned, x), _forward(a, x), rtol=1e-10, atol=1e-10)


def test_dead_neurons_are_scaled_as_the_others_are():
    a, b = _ffn(1), _ffn(2)
    a.up.mul_(9)
    a.down[:, 3:7] = 0
    balance = match_ffn(a, b).balance_below
    rest = [i for i in range(N) if not 3 <= i < 7]
    mean = balance[rest].log().mean().exp()
    torch.testing.assert_close(balance[3:7], mean.expand(4))
    ratio = (a.down.norm(dim=0) / a.up.norm(dim=1)).sqrt().double()
    torch.testing.assert_close(balance[rest], ratio[rest])


def test_joint_matching_withstands_noise_that_breaks_the_gate_alone():
    n, hidden, cosine = 160, 96, 0.55
    clean = _ffn(1, n=n, hidden=hidden)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    a = Ffn(*(_noisy(getattr(clean, k), cosine, 10) for k in ("gate", "up")), clean.down)
    a = replace(a, down=_noisy(clean.down, cosine, 12))
    b = Ffn(
        *(_noisy(getattr(clean, k)[order], cosine, 20) for k in ("gate", "up")),
        _noisy(clean.down[:, order], cosine, 22),
    )
    unit = torch.nn.functional.normalize
    joint = match_ffn(a, b).source
    alone = match_ffn(a, b, similarity=unit(a.gate) @ unit(b.gate).T).source
    recovered = [float((source == order).double().mean()) for source in (joint, alone)]
    assert recovered[0] > 0.98
    assert recovered[1] < 0.8


def test_a_joint_mean_is_nearer_to_the_clean_function_than_a_plain_one():
    clean = _ffn(1, n=160, hidden=96)
    a, shifted = (
        replace(
            clean,
            gate=_noisy(clean.gate, 0.8, seed),
            up=_noisy(clean.up, 0.8, seed + 1),
            down=_noisy(clean.down, 0.8, seed + 2),
        )
        for seed in (30, 40)
    )
    b = _scrambled(shifted)
    x = torch.randn(20, 96, generator=torch.Generator().manual_seed(3))

    def error(below):
        mean = Ffn(*((getattr(below, k) + getattr(b, k)) / 2 for k in ("gate", "up", "down")))
        return oracles.relative_error(_forward(mean, x), _forward(clean, x))

    exact, soft = (apply_ffn(match_ffn(a, b, reg=reg), a) for reg in (None, 0.06))
    upper = oracles.relative_error(_forward(b, x), _forward(clean, x))
    assert max(error(exact), error(soft)) < 0.8 * min(upper, error(a))


def test_bfloat16_weights_are_matched_and_given_back_in_float32():
    a = _ffn(1, biased=True, dtype=torch.bfloat16)
    b = _scrambled(a, scaled=False)
    for reg in (None, 0.05):
        aligned = apply_ffn(match_ffn(a, b, reg=reg), a)
        assert aligned.up.dtype == aligned.gate_bias.dtype == torch.float32
    assert _largest_difference(apply_ffn(match_ffn(a, b), a), b) < 1e-6


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda ffn: _ffn(2, n=N + 1), "gate"),
        (lambda ffn: replace(ffn, gate=None), "gate"),
        (lambda ffn: replace(ffn, up_bias=torch.zeros(N)), "up_bias"),
    ],
)
def test_blocks_of_different_kinds_are_refused(change, word):
    with pytest.raises(DeepenError, match=f"FFNs of two blocks differ in {word};"):
        match_ffn(_ffn(1), change(_ffn(2)))


def test_a_similarity_of_the_wrong_size_is_refused():
    with pytest.raises(DeepenError, match=r"\[3, 3\] does not fit 37 neurons"):
        match_ffn(_ffn(1), _ffn(2), similarity=torch.zeros(3, 3))
    with pytest.raises(DeepenError, match="give one finite value for every pair"):
        match_ffn(_ffn(1), _ffn(2), reg=0.1, similarity=torch.full((N, N), float("nan")))


@pytest.mark.parametrize("reg", [None, 0.1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, reg):
    b = _ffn(2)
    b.down[3, 4] = value
    with pytest.raises(DeepenError, match="have a down that is infinite or not a number"):
        match_ffn(_ffn(1), b, reg=reg)
