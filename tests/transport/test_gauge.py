"""Bases inside one head: closed forms are optimal, and stay put where nothing is determined."""

import math

import pytest
import torch

from deepen.transport import gauge

R, HIDDEN = 5, 19


def _normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _balanced(seed):
    """Return x ``[r, hidden]`` and y ``[1, r, hidden]`` with x xᵀ = y yᵀ."""
    x = _normal(seed, R, HIDDEN)
    return x, (x @ torch.linalg.qr(_normal(seed + 50, HIDDEN, HIDDEN))[0])[None]


def _distance(T, a, b):
    moved = torch.linalg.inv(T).T @ a[1]
    return float((T @ a[0] - b[0]).square().sum() + (moved - b[1]).square().sum())


def test_no_rotation_of_balanced_rows_comes_closer():
    a, b = _balanced(1), _balanced(2)
    T = gauge.linear_map(*a, *b)
    torch.testing.assert_close(T @ T.T, torch.eye(R, dtype=T.dtype))
    best = _distance(T, a, b)
    for seed in range(100):
        skew = 0.1 * _normal(seed, R, R)
        other = torch.linalg.matrix_exp(skew - skew.T) @ T
        assert _distance(other, a, b) > best


def test_the_balanced_gauge_is_of_all_heads_together():
    x, y = _normal(1, R, HIDDEN), _normal(2, 3, R, HIDDEN)
    balanced_x, balanced_y = _balanced(3)
    T = gauge.linear_map(x, y, balanced_x, balanced_y.expand(3, -1, -1) / 3**0.5)
    moved = torch.linalg.inv(T).T @ y
    torch.testing.assert_close(T @ x @ x.T @ T.T, sum(rows @ rows.T for rows in moved))


def test_no_plane_factor_comes_closer():
    def rows(seed):
        x = torch.view_as_complex(_normal(seed, 3, HIDDEN, 2))
        y = torch.view_as_complex(_normal(seed + 50, 2, 3, HIDDEN, 2))
        # Balanced: ‖x‖² is the sum of ‖y_h‖², plane by plane.
        return x, y * (x.norm(dim=1) / y.norm(dim=(0, 2)))[:, None]

    def distance(factors):
        x = (factors[:, None] * a[0] - b[0]).abs().square().sum()
        return float(x + (a[1] / factors.conj()[:, None] - b[1]).abs().square().sum())

    a, b = rows(1), rows(2)
    scale = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64)
    b = b[0] * scale[:, None], b[1] / scale[:, None]
    factors = gauge.plane_factors(*a, *b)
    in_b = b[0].norm(dim=1) / (a[0].norm(dim=1)), b[1].norm(dim=(0, 2)) / a[1].norm(dim=(0, 2))
    torch.testing.assert_close(factors.abs(), (in_b[0] / in_b[1]).sqrt())
    # Angles are judged where both sides weigh the same, in the balanced gauge.
    b = b[0] / scale[:, None], b[1] * scale[:, None]
    angles = factors / factors.abs()
    for turn in (-0.05, 0.05):
        for p in range(3):
            other = angles.clone()
            other[p] *= complex(math.cos(turn), math.sin(turn))
            assert distance(other) > distance(angles)


def test_directions_that_are_dead_stay_where_they_are():
    x, y = _normal(1, R, HIDDEN), _normal(2, 2, R, HIDDEN)
    basis = torch.linalg.qr(_normal(3, R, R))[0][:, :3]
    alive = basis @ basis.T
    x, y = alive @ x, alive @ y
    T = gauge.linear_map(x.float(), y.float(), -x.float(), -y.float())
    torch.testing.assert_close(T, torch.eye(R, dtype=T.dtype) - 2 * alive, rtol=0, atol=1e-2)


def test_rank_deficient_rows_are_balanced_by_one_number():
    x, y = _normal(1, R, HIDDEN), _normal(2, 2, R, HIDDEN)
    x[4] = x[0] + x[1]
    T = gauge.linear_map(x, y, 3 * x, y / 3)
    torch.testing.assert_close(T, 3 * torch.eye(R, dtype=T.dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("small", [0.0, 1e-20, 1e-8, 1e-5])
def test_nearly_rank_deficient_rows_are_not_blown_up(small):
    a, b = ([_normal(s, R, HIDDEN), _normal(s + 1, 2, R, HIDDEN)] for s in (1, 5))
    a[0][3:] *= small
    T = gauge.linear_map(*a, *b)
    assert T.abs().max() < 10
    assert torch.linalg.inv(T).abs().max() < 10


@pytest.mark.parametrize("zero", [(0,), (1,), (2,), (3,), (0, 2), (1, 3), (0, 1, 2, 3)])
def test_what_is_zero_has_no_scale(zero):
    rows = [100 * _normal(1, R, HIDDEN), _normal(2, 2, R, HIDDEN)]
    rows += [_normal(3, R, HIDDEN), _normal(4, 2, R, HIDDEN)]
    for i in zero:
        rows[i].zero_()
    T = gauge.linear_map(*rows)
    torch.testing.assert_close(T @ T.T, torch.eye(R, dtype=T.dtype))
    if len(zero) == 4:
        assert torch.equal(T, torch.eye(R, dtype=T.dtype))
    planes = [torch.complex(x[..., :2, :], x[..., 2:4, :]) for x in rows]
    torch.testing.assert_close(gauge.plane_factors(*planes).abs(), torch.ones(2, dtype=T.dtype))


def test_planes_are_the_dims_that_their_kind_says():
    rows = torch.arange(6.0)[:, None] + torch.zeros(2, 6, 3)
    half, adjacent = (gauge.to_planes(rows, 4, planes) for planes in ("half", "adjacent"))
    assert half.shape == adjacent.shape == (2, 2, 3)
    assert half[0, :, 0].tolist() == [0 + 2j, 1 + 3j]
    assert adjacent[0, :, 0].tolist() == [0 + 1j, 2 + 3j]


@pytest.mark.parametrize("planes", ["half", "adjacent"])
def test_a_plane_map_multiplies_planes_and_leaves_the_rest(planes):
    factors = torch.tensor([2 + 1j, -0.5j], dtype=torch.complex128)
    rows = _normal(1, 7, 3)
    moved = gauge.plane_map(factors, 7, planes) @ rows
    expected = factors[:, None] * gauge.to_planes(rows, 4, planes)
    torch.testing.assert_close(gauge.to_planes(moved, 4, planes), expected)
    assert torch.equal(moved[4:], rows[4:])
