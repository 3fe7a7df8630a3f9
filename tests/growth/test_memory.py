"""Memory must not grow with the model: two blocks and a shard buffer beyond the libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shrink
import tiny
from deepen.base.model import open_model

MEGABYTE = 2**20

# Each growth has its own peak: writing 5 makes the kernel forget the one before.
GROW = """
import sys, json, pathlib, deepen
from deepen.common.system import peak_resident_bytes
peaks = []
for base, out, options in json.loads(sys.argv[1]):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    deepen.grow(base, out, **options)
    peaks.append(peak_resident_bytes())
print(json.dumps(peaks))
"""
# Freed tensors go back at once: pieces that glibc keeps would be up to a block, another each time.
STRICT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="no way to forget a peak"
)


def beyond(first: Path, second: Path, out: Path, method: str, shard_bytes: int, **more: int) -> int:
    """Return how many bytes more the second base takes than the first, grown in one process.

    Before both of them the first is grown once, so that what the libraries keep is there.
    """
    options = {"method": method, "max_shard_size": shard_bytes, **more}
    bases = enumerate((first, first, second))
    jobs = json.dumps([[str(base), str(out / f"grown-{i}"), options] for i, base in bases])
    command = [sys.executable, "-c", GROW, jobs]
    told = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **STRICT}
    )
    _, few, many = json.loads(told.stdout)
    return many - few


def base_of(folder: Path, depth: int) -> Path:
    """Save blocks of 11 MB."""
    sizes = {"hidden_size": 512, "head_dim": 128, "intermediate_size": 3072}
    return tiny.save(folder, **sizes, num_hidden_layers=depth)


def test_copying_stays_under_two_blocks_and_a_shard(llama, tmp_path):
    """Read whole, the base would take 4 times the allowance."""
    folder, shard_bytes = base_of(tmp_path / "large", 16), 16 * MEGABYTE
    base = open_model(folder)
    allowed = 2 * 2 * base.parameters_of(0) + shard_bytes
    assert base.source.parameters * 2 > 4 * allowed
    more = beyond(llama, folder, tmp_path, "llama-pro", shard_bytes)
    assert more < allowed, f"{more / MEGABYTE:.0f} MB of {allowed / MEGABYTE:.0f} MB"


def test_transport_needs_no_more_for_a_deeper_base(tmp_path):
    """Its cost and kernel are [FFN, FFN] in float32, whatever the number of blocks."""
    shallow, deep = base_of(tmp_path / "shallow", 3), base_of(tmp_path / "deep", 15)
    per_block = 2 * open_model(shallow).parameters_of(0)
    more = beyond(shallow, deep, tmp_path, "opt-deus", MEGABYTE, new_layers=1)
    assert more < per_block, f"{more / per_block:.2f} of 12 blocks more"


@pytest.mark.parametrize(
    ("family", "banks"), [("mixtral", 0), pytest.param("gpt_oss", 2, marks=pytest.mark.slow)]
)
def test_experts_are_handled_one_at_a_time(tmp_path, family, banks):
    """With tensors of their own their number hardly matters; a bank is assembled once.

    A parent's bank is mapped, and counts as it is read: gate and up of both parents, or down. A
    whole parent in float32 would be two blocks more.
    """
    folders, block = [], []
    for experts in (8, 64):
        sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
        sizes |= dict.fromkeys(("num_local_experts", "num_experts"), experts)
        folders.append(tmp_path / f"{experts}")
        model = shrink.model(family, **sizes, layer_types=None)
        model.to(torch.bfloat16).save_pretrained(folders[-1])
        block.append(2 * open_model(folders[-1]).parameters_of(0))
    assert block[1] - block[0] > 40 * MEGABYTE
    more = beyond(*folders, tmp_path, "opt-deus", 16 * MEGABYTE, new_layers=1)
    blocks = more / (block[1] - block[0])
    assert blocks < (banks or 1), f"{blocks:.2f} blocks more"
