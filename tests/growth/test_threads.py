"""The number of threads changes no bit of new blocks, but for LESA's, whose MLP is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from deepen import methods

# Large enough that torch divides products and sums among threads.
SIZES = {"hidden_size": 256, "intermediate_size": 640, "head_dim": 64, "num_hidden_layers": 4}

GROW = """
import sys
import deepen
base, out = sys.argv[1:3]
for method in sys.argv[3:]:
    deepen.grow(base, f"{out}/{method}", method=method, new_layers=2, device="cpu")
"""


def grown(base: Path, out: Path, names: list[str], threads: int) -> dict[str, dict[str, str]]:
    """Grow by several methods in a process of so many threads; return new tensors' SHA-256."""
    subprocess.run(
        [sys.executable, "-c", GROW, str(base), str(out), *names],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        check=True,
        capture_output=True,
    )
    files = {name: out / name / "deepen-manifest.json" for name in names}
    return {name: json.loads(file.read_text())["new_tensors"] for name, file in files.items()}


@pytest.mark.slow
def test_threads_change_no_bit(tmp_path: Path) -> None:
    base, names = tiny.save(tmp_path / "base", **SIZES), [*methods.names()]
    names.remove("lesa")
    one, two = (grown(base, tmp_path / str(n), names, n) for n in (1, 2))
    differing = [name for name in names if one[name] != two[name]]
    assert differing == []
