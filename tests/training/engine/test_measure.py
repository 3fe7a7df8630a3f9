"""The machine's own rate is measured, not assumed."""

import time

import pytest
import torch

from deepen.training.engine import measure
from deepen.training.engine.measure import Clock, matmul_rate, peak_bytes


def test_a_rate_is_what_a_product_takes() -> None:
    device = torch.device("cpu")
    state = torch.get_rng_state()
    matmul_rate.cache_clear()
    rate = matmul_rate(device, torch.float32)
    left = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - start)
    assert 0.2 < rate / (2 * 1024**3 / best) < 5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("enough", "products"), [(1e9, 6), (0.0, 1)])
def test_a_product_that_takes_long_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, enough: float, products: int
) -> None:
    counted, real = [], torch.matmul
    monkeypatch.setattr(measure, "_ENOUGH_SECONDS", enough)
    monkeypatch.setattr(torch, "matmul", lambda *pair: counted.append(pair) or real(*pair))
    matmul_rate.cache_clear()
    rates = [matmul_rate(torch.device("cpu"), torch.float32) for _ in range(2)]
    matmul_rate.cache_clear()
    assert len(counted) == products
    assert rates[0] == rates[1] > 0


def test_a_clock_measures_seconds() -> None:
    clock = Clock(torch.device("cpu"))
    start = clock.mark()
    time.sleep(0.01)
    assert 0.01 <= clock.seconds(start, clock.mark()) < 1


def test_a_process_has_a_peak() -> None:
    assert peak_bytes(torch.device("cpu")) > 10**7
