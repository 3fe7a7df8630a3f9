"""Devices: what is there is found, and what is not is told in one sentence."""

import pytest
import torch

from deepen.common import device
from deepen.common.errors import DeepenError


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_a_device_is_found(name):
    assert device.choose(name) == torch.device(name)


@pytest.mark.parametrize("there", [False, True])
def test_auto_is_the_gpu_if_there_is_one(monkeypatch, there):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert device.choose("auto").type == ("cuda" if there else "cpu")


@pytest.mark.parametrize("name", ["abacus", "", "cuda:99", "hpu", "ve", "meta"])
def test_what_is_not_there_is_told(name):
    with pytest.raises(DeepenError, match=f"Device '{name}' is not to be had here"):
        device.choose(name)


def test_a_full_device_is_not_a_missing_one(monkeypatch):
    def full(*sizes, **how):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("torch.empty", full)
    with pytest.raises(DeepenError, match="Device 'cuda' has no memory left"):
        device.choose("cuda")
