"""Fixtures that many tests share."""

import gc
import importlib
import os
import signal
import sys
from collections import Counter
from pathlib import Path

# Nothing here may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny tensors: a second thread only waits, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from transformers.utils import logging

import tiny

logging.disable_progress_bar()
# A shell ignores it for what runs in its background, and processes that tests start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("growth/test_memory.py", "training/test_processes.py", "comparison/test_run.py")
"""Files of few tests whose processes take long."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let processes that share the tests begin with what takes longest, so that none ends alone."""
    if hasattr(config, "workerinput"):
        counts = Counter(item.path for item in items)
        items.sort(key=lambda i: (not str(i.path).endswith(LONGEST), -counts[i.path]))


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """Leave what is loaded by now out of every search for garbage: half of a tiny training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 Llama checkpoint; read only."""
    return tiny.save(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session", params=list(tiny.FAMILIES))
def any_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each family in turn; read only."""
    return tiny.save(tmp_path_factory.mktemp("bases") / request.param, request.param)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what installs a module's text as a stranger's package that adds something."""

    def put(module: str, text: str, entry_points: str) -> None:
        package = tmp_path / "site" / "my_package"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / f"{module}.py").write_text(text)
        about = package.parent / "my_package-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(package.parent)
        importlib.invalidate_caches()

    yield put
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
