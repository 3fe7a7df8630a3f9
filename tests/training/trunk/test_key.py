"""What decides a state is in its key, and nothing else is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import deepen
import tiny
from deepen.base.model import open_model
from deepen.training.data.packed import PackedSequences
from deepen.training.trunk.key import states_key, trunk_key

CPU = torch.device("cpu")


def key(folder: Path, below: int = 3, dtype: torch.dtype = torch.float32) -> str:
    """Hash the trunk of a checkpoint."""
    return trunk_key(open_model(folder), below, dtype, CPU)


def grown(base: Path, out: Path, **asked: object) -> Path:
    """Grow a checkpoint by two blocks above its fourth."""
    deepen.grow(base, out, new_layers=2, placement="after:3,4", **asked)
    return out


def test_models_of_one_base_share_a_trunk_up_to_their_lowest_new_block(
    llama: Path, tmp_path: Path
) -> None:
    made = [grown(llama, tmp_path / m, method=m) for m in ("opt-deus", "random")]
    one, other = (key(folder, 4) for folder in made)
    assert one == other == key(llama, 4)
    assert key(made[0], 5) != key(made[1], 5)


def test_types_of_blocks_above_do_not_matter(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "qwen2")
    assert key(base, 4) == key(grown(base, tmp_path / "grown"), 4)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"])
def test_one_bit_of_a_weight_matters(llama: Path, edited: Callable[..., Path], name: str) -> None:
    def flip(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.int16).view(-1)[-1] ^= 1
        return tensor

    assert key(edited(llama, name, flip)) != key(llama)


def test_what_stands_above_does_not_matter(llama: Path, edited: Callable[..., Path]) -> None:
    above = ("model.norm.weight", "lm_head.weight", "model.layers.3.mlp.up_proj.weight")
    for name in above:
        assert key(edited(llama, name, torch.neg)) == key(llama)


def test_depth_of_the_trunk_arithmetic_and_settings_matter(llama: Path, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "theta", rope_theta=5000.0)
    keys = [key(llama), key(llama, 4), key(llama, 3, torch.bfloat16), key(other)]
    assert len(set(keys)) == 4


def test_tokens_and_their_cut_matter(tmp_path: Path) -> None:
    def sequences(last: int, length: int) -> PackedSequences:
        tokens = np.arange(12, dtype="<u4")
        tokens[-1] = last
        file = tmp_path / f"{last}-{length}.bin"
        file.write_bytes(tokens.tobytes())
        return PackedSequences(file, 12, length)

    one = states_key("trunk", sequences(11, 4))
    assert one == states_key("trunk", sequences(11, 4))
    others = [states_key("trunk", sequences(*cut)) for cut in ((12, 4), (11, 3))]
    assert len({one, states_key("other", sequences(11, 4)), *others}) == 4


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Return a checkpoint with one tensor changed."""
    from safetensors.torch import load_file, save_file

    def edit(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
        out = tmp_path / name
        out.mkdir()
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = change(tensors[name])
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        (out / "config.json").write_bytes((folder / "config.json").read_bytes())
        return out

    return edit
