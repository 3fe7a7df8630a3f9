"""Streams of activations: the same numbers as with everything at once, whatever the batches."""

import numpy as np
import pytest
import torch

from deepen.common.errors import DeepenError
from deepen.transport.correlation import (
    Correlation,
    Covariance,
    HeadCorrelation,
    StreamingCka,
    Variance,
    linear_cka,
)
from deepen.transport.heads import Attention, Rotary, apply_attention, match_attention


def _activations(seed, tokens=200, width=9, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(tokens, width, generator=generator) @ mix + mean


def _fed(accumulator, x, y, batches):
    for part in zip(x.split(batches), y.split(batches), strict=True):
        accumulator.update(*part)
    return accumulator


@pytest.mark.parametrize("batches", [1, 7, 64, 200])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_correlations_are_numpys(batches, mean):
    x, y = _activations(1, mean=mean), _activations(2, width=5, mean=-mean)
    found = _fed(Correlation(), x, y, batches).value()
    expected = np.corrcoef(x.double().numpy(), y.double().numpy(), rowvar=False)[:9, 9:]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_covariances_are_numpys():
    x, y = _activations(1, mean=20.0), _activations(2, width=5)
    found = _fed(Covariance(), x, y, 33).value()
    expected = np.cov(x.numpy(), y.numpy(), rowvar=False, bias=True)[:9, 9:]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_what_never_changes_correlates_with_nothing():
    x, y = _activations(1), _activations(2)
    x[:, 3] = 2.5
    found = _fed(Correlation(), x, y, 50).value()
    assert (found[3] == 0).all()
    assert torch.isfinite(found).all()


def test_batches_of_sequences_are_tokens():
    x, y = _activations(1), _activations(2)
    flat, deep = Correlation(), Correlation()
    flat.update(x, y)
    deep.update(x.view(4, 50, 9), y.view(4, 50, 9))
    torch.testing.assert_close(deep.value(), flat.value())


def _plain_cka(x, y):
    x, y = (values.double() - values.double().mean(0) for values in (x, y))
    similar = [float((u @ u.T * (v @ v.T)).sum()) for u, v in ((x, y), (x, x), (y, y))]
    return similar[0] / (similar[1] * similar[2]) ** 0.5


@pytest.mark.parametrize("batches", [1, 30, 200])
def test_cka_is_the_alignment_of_token_similarities(batches):
    x, y = _activations(1, mean=5.0), _activations(2, width=4)
    y = y + 0.3 * x[:, :4]
    assert linear_cka(x, y) == pytest.approx(_plain_cka(x, y), abs=1e-4)
    streamed = _fed(StreamingCka(), x, y, batches).value()
    assert streamed == pytest.approx(_plain_cka(x, y), abs=1e-4)


def test_cka_sees_neither_rotations_nor_scales():
    x, y = _activations(1), _activations(2)
    rotation = torch.linalg.qr(_activations(3, tokens=9))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x @ rotation, y) == pytest.approx(linear_cka(x, y), abs=1e-5)
    assert linear_cka(x, torch.ones_like(x)) == 0


def _heads(seed, heads=3, width=4, hidden=11):
    generator = torch.Generator().manual_seed(seed)
    return (
        _activations(seed, width=heads * width, mean=1.0),
        torch.randn(hidden, heads * width, generator=generator),
    )


@pytest.mark.parametrize("batches", [9, 200])
def test_heads_correlate_by_what_they_write(batches):
    (x, output_a), (y, output_b) = _heads(1), _heads(2)
    y = y + x
    found = _fed(HeadCorrelation(3), x, y, batches).value(output_a, output_b)

    def written(z, output, head):
        part = slice(4 * head, 4 * head + 4)
        values = z[:, part].double() @ output[:, part].double().T
        return values - values.mean(0)

    for h in range(3):
        for g in range(3):
            one, other = written(x, output_a, h), written(y, output_b, g)
            expected = float((one * other).sum() / one.norm() / other.norm())
            assert found[h, g] == pytest.approx(expected, abs=1e-4)


def test_head_correlations_do_not_depend_on_the_basis_inside_a_head():
    (x, output_a), (y, output_b) = _heads(1), _heads(2)
    basis = torch.block_diag(*torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5)))
    plain = _fed(HeadCorrelation(3), x, y, 50).value(output_a, output_b)
    moved = _fed(HeadCorrelation(3), x @ basis, y, 50)
    torch.testing.assert_close(
        moved.value(output_a @ torch.linalg.inv(basis).T, output_b), plain, rtol=0, atol=1e-4
    )


def test_silent_heads_correlate_with_nothing():
    (x, output_a), (y, output_b) = _heads(1), _heads(2)
    found = _fed(HeadCorrelation(3), x, y, 50).value(output_a, torch.zeros_like(output_b))
    assert (found == 0).all()


def test_head_correlations_find_heads_that_moved():
    rows = [torch.randn(12, 20, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    output = torch.randn(20, 12, generator=torch.Generator().manual_seed(7))
    a = Attention(*rows, output, heads=3, kv_heads=3, rotary=Rotary(4))
    order = torch.tensor([2, 0, 1])
    columns = torch.arange(12).view(3, 4)[order].flatten()
    b = Attention(*(x[columns] for x in rows), output[:, columns], 3, 3, Rotary(4))
    x = _activations(1, width=12)
    similarity = _fed(HeadCorrelation(3), x, x[:, columns], 40).value(a.output, b.output)
    match = match_attention(a, b, similarity=similarity)
    assert torch.equal(match.heads, order)
    torch.testing.assert_close(apply_attention(match, a).output, b.output)


@pytest.mark.parametrize("kind", [Covariance, Correlation, StreamingCka, Variance])
def test_nothing_seen_is_an_error(kind):
    with pytest.raises(DeepenError, match="No activations were seen"):
        kind().value()


def test_texts_of_different_length_are_refused():
    with pytest.raises(DeepenError, match="200 and 150 tokens"):
        Correlation().update(_activations(1), _activations(2, tokens=150))
