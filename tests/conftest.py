"""Fixtures that many tests share."""

import os
from pathlib import Path

# Nothing here may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny tensors: a second thread only waits, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from transformers.utils import logging

import tiny

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 Llama checkpoint; read only."""
    return tiny.save(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session", params=list(tiny.FAMILIES))
def any_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each family in turn; read only."""
    return tiny.save(tmp_path_factory.mktemp("bases") / request.param, request.param)
