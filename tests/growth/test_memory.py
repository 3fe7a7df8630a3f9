"""Memory must not grow with the model: two blocks and a shard buffer beyond the libraries."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shrink
import tiny
from deepen.base.model import open_model

MEGABYTE = 2**20

GROW = """
import sys, deepen
from deepen.common.system import peak_resident_bytes
deepen.grow(sys.argv[1], sys.argv[2], method=sys.argv[3], max_shard_size=int(sys.argv[4]))
print(peak_resident_bytes())
"""


def peak(*arguments: object) -> int:
    """Return the peak resident bytes of a process that grows."""
    command = [sys.executable, "-c", GROW, *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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
    libraries = peak(llama, tmp_path / "a", "llama-pro", shard_bytes)
    beyond = peak(folder, tmp_path / "b", "llama-pro", shard_bytes) - libraries
    assert beyond < allowed, f"{beyond / MEGABYTE:.0f} MB of {allowed / MEGABYTE:.0f} MB"


def test_transport_needs_no_more_for_a_deeper_base(tmp_path):
    """Its cost and kernel are [FFN, FFN] in float32, whatever the number of blocks."""
    peaks = {}
    for depth in (4, 16):
        base = base_of(tmp_path / f"base-{depth}", depth)
        peaks[depth] = peak(base, tmp_path / f"grown-{depth}", "opt-deus", MEGABYTE)
    per_block = 2 * open_model(tmp_path / "base-4").parameters_of(0)
    assert peaks[16] - peaks[4] < 6 * per_block, peaks  # half of the 12 blocks more


@pytest.mark.parametrize(
    ("family", "banks"), [("mixtral", 0), pytest.param("gpt_oss", 2, marks=pytest.mark.slow)]
)
def test_experts_are_handled_one_at_a_time(tmp_path, family, banks):
    """With tensors of their own their number hardly matters; a bank is assembled once.

    A parent's bank is mapped, and counts as it is read: gate and up of both parents, or down. A
    whole parent in float32 would be two blocks more; fragments of freed memory are half of one, and
    on a busy machine one.
    """
    peaks, block = {}, {}
    for experts in (8, 64):
        sizes = {"hidden_size": 256, "intermediate_size": 512}
        sizes |= dict.fromkeys(("num_local_experts", "num_experts"), experts)
        folder = tmp_path / f"{experts}"
        model = shrink.model(family, **sizes, num_hidden_layers=4, layer_types=None)
        model.to(torch.bfloat16).save_pretrained(folder)
        block[experts] = 2 * open_model(folder).parameters_of(0)
        peaks[experts] = peak(folder, tmp_path / f"grown-{experts}", "opt-deus", 16 * MEGABYTE)
    more = block[64] - block[8]
    assert more > 40 * MEGABYTE
    beyond = (peaks[64] - peaks[8]) / more
    assert beyond < (banks or 1.5), f"{beyond:.2f} blocks more"
