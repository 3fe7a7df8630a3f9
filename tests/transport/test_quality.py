"""Numbers of quality: against loops, closed forms, and plans whose quality is known."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from deepen.transport import quality
from deepen.transport.heads import Attention, Rotary, match_attention
from deepen.transport.neurons import Ffn, match_ffn


def _normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _permutation(n, seed=0):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    plan = torch.zeros(n, n)
    plan[order, torch.arange(n)] = 1 / n
    return order, plan


def _ffn(seed, n=29, hidden=48):
    return Ffn(_normal(seed, n, hidden), _normal(seed + 1, n, hidden), _normal(seed + 2, hidden, n))


def test_effective_matches_count_rows_and_not_scale():
    plan = torch.tensor([[0.25, 0.25, 0, 0], [0, 0, -0.5, 0], [0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0]])
    torch.testing.assert_close(quality.row_matches(plan), torch.tensor([2.0, 1.0, 4.0, 1.0]))
    expected = (2.0 * 1.0 * 4.0 * 1.0) ** 0.25
    assert quality.effective_matches(plan) == pytest.approx(expected)
    assert quality.effective_matches(1000 * plan) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 37])
def test_effective_matches_of_extremes(n):
    assert quality.effective_matches(torch.full((n, n), 1 / n**2)) == pytest.approx(n)
    assert quality.effective_matches(_permutation(n)[1]) == pytest.approx(1)


def test_diagonal_mass():
    plan = torch.tensor([[0.3, -0.1], [0.2, -0.4]])
    assert quality.diagonal_mass(plan) == pytest.approx(0.7)
    order, plan = _permutation(31)
    stays = float((order == torch.arange(31)).double().mean())
    assert quality.diagonal_mass(plan) == pytest.approx(stays)


def test_mean_cost_of_a_plan_and_of_the_identity():
    cost = torch.rand(9, 9, generator=torch.Generator().manual_seed(1))
    order, plan = _permutation(9)
    expected = sum(float(cost[order[j], j]) for j in range(9)) / 9
    assert quality.mean_cost(cost, plan) == pytest.approx(expected)
    assert quality.mean_cost(cost, torch.where(cost > 0.5, -plan, plan)) == pytest.approx(expected)
    assert quality.mean_cost(cost) == pytest.approx(float(cost.diagonal().mean()))


def test_norm_ratio_exposes_a_plan_that_was_not_rescaled():
    a, b = _normal(1, 40, 64), _normal(2, 40, 64)
    plan = _permutation(40)[1]
    assert quality.norm_ratio(40 * plan.T @ a, b) == pytest.approx(1, abs=0.1)
    assert quality.norm_ratio(plan.T @ a, b) == pytest.approx(1 / 40, abs=0.01)
    b[:3] = 0
    assert quality.norm_ratio(0.5 * b, b) == pytest.approx(0.5)
    assert math.isnan(quality.norm_ratio(a, 0 * b))


def test_mean_cosine_is_of_rows_of_the_same_index():
    a, b = _normal(1, 7, 5), _normal(2, 7, 5)
    expected = sum(float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b, strict=True)) / 7
    assert quality.mean_cosine(a, b) == pytest.approx(expected, abs=1e-6)
    assert quality.mean_cosine(a, 3 * a) == pytest.approx(1)
    assert quality.mean_cosine(a, torch.zeros_like(a)) == 0


@pytest.mark.parametrize(("n", "d"), [(1, 20), (30, 2), (160, 160), (300, 37), (1000, 16)])
def test_chance_cosine_is_what_gaussian_rows_show(n, d):
    rows = normalize(_normal(3, n, d))
    measured = float((normalize(_normal(4, 4000, d)) @ rows.T).amax(1).median())
    if n > 1:
        assert quality.chance_cosine(n, d) == pytest.approx(measured, abs=0.02)
    else:
        assert quality.chance_cosine(n, d) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("gated", [True, False])
def test_chance_holds_for_joint_similarities_of_unrelated_neurons(gated):
    n, hidden = 600, 64
    a, b = (_ffn(seed, n, hidden) for seed in (1, 10))
    if not gated:
        a, b = (Ffn(None, ffn.up, ffn.down) for ffn in (a, b))
    measured = float(match_ffn(a, b).similarity_best.median())
    chance = quality.chance_cosine(2 * n, 3 * hidden) if gated else quality.chance_cosine(n, 128)
    assert measured == pytest.approx(chance, abs=0.01)


def test_the_quality_of_an_exact_match_of_neurons():
    a, b = _ffn(1), _ffn(10)
    match = match_ffn(a, b)
    found = quality.neuron_quality(match)
    assert found.units == 29
    assert found.similarity_before < found.similarity_after <= found.similarity_best
    assert found.similarity_after == pytest.approx(float(match.similarity_after.mean()))
    assert found.cost_after == pytest.approx(1 - found.similarity_after)
    assert found.cost_before == pytest.approx(1 - found.similarity_before)
    assert found.effective_matches == 1
    assert found.diagonal_mass == float((match.source == torch.arange(29)).double().mean())
    assert found.marginal_error == 0


def test_the_quality_of_a_copy_is_perfect():
    a = _ffn(1)
    for reg in (None, 0.05):
        found = quality.neuron_quality(match_ffn(a, a, reg=reg))
        assert found.similarity_before == pytest.approx(1, abs=1e-5)
        assert found.similarity_after == pytest.approx(1, abs=1e-4)
        assert found.diagonal_mass == pytest.approx(1, abs=1e-4)
        assert found.effective_matches == pytest.approx(1, abs=1e-2)


def test_a_softer_plan_spreads_wider_and_matches_less():
    a, b = _ffn(1), _ffn(10)
    sharp, soft, flat = (
        quality.neuron_quality(match_ffn(a, b, reg=reg)) for reg in (0.02, 0.5, 50.0)
    )
    assert 1 <= sharp.effective_matches < soft.effective_matches < flat.effective_matches <= 29
    assert flat.effective_matches == pytest.approx(29, rel=0.01)
    assert sharp.similarity_after > soft.similarity_after > flat.similarity_after
    assert soft.marginal_error <= 2e-3


def test_the_quality_of_heads():
    def attention(seed):
        rows = [_normal(seed + i, 36 if i == 0 else 6, 30) for i in range(3)]
        return Attention(*rows, _normal(seed + 3, 30, 36), heads=6, kv_heads=1, rotary=Rotary(6))

    match = match_attention(attention(2), attention(30))
    found = quality.head_quality(match)
    assert not torch.equal(match.heads[match.heads], torch.arange(6)), "rows could be columns"
    assert found.units == 6
    assert found.similarity_before == pytest.approx(float(match.similarity.diagonal().mean()))
    after = sum(float(match.similarity[match.heads[j], j]) for j in range(6)) / 6
    assert found.similarity_after == pytest.approx(after, abs=1e-6)
    assert found.diagonal_mass == float((match.heads == torch.arange(6)).double().mean())
    again = quality.head_quality(match_attention(attention(1), attention(1)))
    assert again.similarity_after == pytest.approx(1, abs=1e-5)
    assert again.diagonal_mass == 1


@pytest.mark.parametrize(("n", "m"), [(3, 3), (48, 48), (49, 49), (100, 70), (37, 130)])
def test_a_heat_map_is_small_and_keeps_the_mass(n, m):
    plan = torch.rand(n, m, generator=torch.Generator().manual_seed(1))
    cells = torch.tensor(quality.heat_map(plan))
    assert cells.shape == (min(48, n), min(48, m))
    assert (cells > 0).all()
    if n == m == 48:
        assert cells.mean() == pytest.approx(1, abs=1e-5)
    assert quality.heat_map(7 * plan) == pytest.approx(cells.numpy(), rel=1e-4)
    assert torch.tensor(quality.heat_map(torch.full((n, m), 0.3))).allclose(torch.tensor(1.0))


def test_a_sorted_heat_map_of_a_permutation_is_a_diagonal():
    cells = torch.tensor(quality.heat_map(-_permutation(96)[1], size=24))
    torch.testing.assert_close(cells, 24 * torch.eye(24))


def test_a_sorted_heat_map_puts_what_is_sure_first():
    n = 40
    plan = torch.full((n, n), 1 / n**2)
    sure = _permutation(20)[1] * 20 / n
    plan[20:, 20:] = sure
    plan[20:, :20] = plan[:20, 20:] = 0
    plan[:20, :20] = 1 / (20 * n)
    plan = plan[_permutation(n, 1)[0]][:, _permutation(n, 2)[0]]
    cells = torch.tensor(quality.heat_map(plan, size=n))
    torch.testing.assert_close(cells[:20, :20], n * torch.eye(20))
    torch.testing.assert_close(cells[20:, 20:], torch.full((20, 20), 2.0))
    assert cells[:20, 20:].sum() == cells[20:, :20].sum() == 0


def test_an_unsorted_heat_map_averages_neighbours():
    plan = torch.arange(36.0).view(6, 6)
    cells = torch.tensor(quality.heat_map(plan, size=2, sort=False))
    expected = torch.stack(
        [plan[i : i + 3, j : j + 3].mean() for i in (0, 3) for j in (0, 3)]
    ).view(2, 2)
    torch.testing.assert_close(cells, expected / plan.mean())


def test_a_heat_map_of_nothing():
    assert quality.heat_map(torch.zeros(3, 3)) == [[0.0] * 3] * 3
    assert math.isfinite(quality.effective_matches(torch.zeros(3, 3)))
