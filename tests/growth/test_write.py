"""Our writer against safetensors' own."""

import errno
import hashlib
import json
import os
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepen.base.checkpoint import as_bytes, info_of
from deepen.base.identity import tensor_digest
from deepen.base.weights.raw import places_in
from deepen.common.errors import DeepenError
from deepen.common.files import digest_of
from deepen.growth.write import INDEX, ShardWriter

TENSORS = {
    "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "b": torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "c": torch.tensor(2.5),
    "d": torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).half(),
    "é": torch.randn(4, 2, generator=torch.Generator().manual_seed(2)).T,  # not contiguous
}
LAYOUT = {name: info_of(tensor, name) for name, tensor in TENSORS.items()}


def write(folder, size, order=TENSORS):
    writer = ShardWriter(folder, LAYOUT, size)
    for name in order:
        if writer.wants(name):
            writer.write(name, TENSORS[name])
    writer.finish()
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_one_file_reads_back_and_is_as_long_as_safetensors_own(tmp_path):
    (tmp_path / "ours").mkdir()
    write(tmp_path / "ours", "5GB")
    loaded = load_file(tmp_path / "ours/model.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_order_of_writing_does_not_change_the_bytes(tmp_path):
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    assert write(folders[0], 40) == write(folders[1], 40, list(TENSORS)[::-1])


def test_shards_stay_under_the_limit_and_the_index_is_complete(tmp_path):
    write(tmp_path, 60)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"].keys() == TENSORS.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    for file in set(index["weight_map"].values()):
        loaded = load_file(tmp_path / file)
        assert len(loaded) == 1 or sum(t.nbytes for t in loaded.values()) <= 60
        assert all(torch.equal(t, TENSORS[name]) for name, t in loaded.items())


@pytest.mark.parametrize("order", [list(TENSORS), list(TENSORS)[::-1], ["b", "c", "a", "d", "é"]])
@pytest.mark.parametrize("size", [60, "5GB"])
def test_what_is_written_is_hashed_as_it_passes(tmp_path, order, size):
    """In any order: those of several dtypes do not come as they stand in the file."""
    writer = ShardWriter(tmp_path, LAYOUT, size)
    for name in order:
        writer.write(name, TENSORS[name])
    writer.finish()
    assert sorted(writer.files) == sorted(f.name for f in tmp_path.glob("*.safetensors"))
    for name, told in writer.files.items():
        content = (tmp_path / name).read_bytes()
        assert told.sha256 == hashlib.sha256(content).hexdigest()
        assert told.size_bytes == len(content)
    for name, told in writer.digests.items():
        assert told == tensor_digest(TENSORS[name])


def damaged_after(writer, file, order):
    """Write tensors, of which the disk damages the first as soon as it holds it."""
    for name in order[:2]:
        writer.write(name, TENSORS[name])
    raw, meant = bytearray(file.read_bytes()), TENSORS[order[0]].numpy().tobytes()
    raw[raw.index(meant)] ^= 1
    file.write_bytes(raw)
    for name in order[2:]:
        writer.write(name, TENSORS[name])


def test_the_hash_is_of_what_was_meant_and_not_of_what_the_disk_returns(tmp_path):
    (tmp_path / "sound").mkdir()
    sound = write(tmp_path / "sound", "5GB")["model.safetensors"]
    writer, file = ShardWriter(tmp_path, LAYOUT, "5GB"), tmp_path / "model.safetensors"
    damaged_after(writer, file.with_name(file.name + ".part"), ["b", "c", "é", "a", "d"])
    assert writer.files[file.name].sha256 == hashlib.sha256(sound).hexdigest() != digest_of(file)


def test_what_must_be_read_back_and_is_not_what_was_written_is_told(tmp_path):
    writer, file = ShardWriter(tmp_path, LAYOUT, "5GB"), tmp_path / "model.safetensors"
    with pytest.raises(OSError, match="something else than was written"), closing(writer):
        damaged_after(writer, file.with_name(file.name + ".part"), ["d", "b", "c", "é", "a"])
    assert not file.exists()


def test_an_unfinished_shard_does_not_have_its_name(tmp_path):
    writer = ShardWriter(tmp_path, LAYOUT, "5GB")
    writer.write("a", TENSORS["a"])
    writer.close()
    assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors.part"]
    with pytest.raises(ValueError, match="never written"):
        writer.finish()


def test_a_tensor_unlike_its_layout_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, LAYOUT, "5GB")
    with pytest.raises(ValueError, match="laid out as"):
        writer.write("a", TENSORS["a"].float())


@pytest.mark.parametrize("size", ["big", "5 parsecs", ""])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    with pytest.raises(DeepenError, match="write for example 5GB"):
        ShardWriter(tmp_path, LAYOUT, size)


@pytest.mark.parametrize("size", ["infGB", "nanGB", "-1GB", "1e999GB", "5", "GB", 0, -1, "9" * 99])
def test_what_is_no_size_is_told(tmp_path, size):
    with pytest.raises(DeepenError, match="is not a size; write for example"):
        ShardWriter(tmp_path, LAYOUT, size)


def not_here(*arguments, **named):
    raise OSError(errno.EXDEV, "another file system")


def a_little(copied):
    """Copy at most 11 bytes a call, and after three calls say that it cannot be done."""
    calls = []

    def copy(source, target, count, start, at):
        calls.append(count)
        return copied(source, target, min(count, 11), start, at) if len(calls) % 4 else not_here()

    return copy


@pytest.mark.parametrize("system", ["whole", "little", "none", "no such call"])
@pytest.mark.parametrize("size", ["5GB", 40])
def test_what_is_copied_from_a_file_is_what_is_written(tmp_path, monkeypatch, size, system):
    if system == "no such call":
        monkeypatch.delattr(os, "copy_file_range")
    elif system != "whole":
        given = not_here if system == "none" else a_little(os.copy_file_range)
        monkeypatch.setattr(os, "copy_file_range", given)
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, tmp_path / "source.safetensors", metadata={"format": "pt"})
    places = places_in(tmp_path / "source.safetensors")
    orders = [list(TENSORS), list(TENSORS)[::-1], [*places]]
    for number, order in enumerate(orders):
        folders = [tmp_path / f"{number} {how}" for how in ("written", "copied")]
        for folder in folders:
            folder.mkdir()
        expected = write(folders[0], size, order)
        with closing(ShardWriter(folders[1], LAYOUT, size)) as writer:
            for name in order:
                if name == "d":
                    writer.write(name, TENSORS[name])
                else:
                    largest = float(TENSORS[name].double().abs().max())
                    assert writer.copy(name, places[name]) == largest
            writer.finish()
        assert {f.name: f.read_bytes() for f in folders[1].iterdir()} == expected
        for name, digest in writer.files.items():
            assert digest.sha256 == hashlib.sha256(expected[name]).hexdigest()
        for name, tensor in contiguous.items():
            assert writer.digests[name] == hashlib.sha256(as_bytes(tensor).numpy().data).hexdigest()


def test_neighbours_are_copied_in_one_call(tmp_path, monkeypatch):
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, tmp_path / "source.safetensors", metadata={"format": "pt"})
    calls, copied = [], os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda *given: calls.append(given) or copied(*given))
    (tmp_path / "out").mkdir()
    with closing(ShardWriter(tmp_path / "out", LAYOUT, "5GB")) as writer:
        for name, place in places_in(tmp_path / "source.safetensors").items():
            writer.copy(name, place)
        writer.finish()
    assert len(calls) == 1


def test_a_copy_of_another_size_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "source.safetensors")
    place = places_in(tmp_path / "source.safetensors")["a"]
    writer = ShardWriter(tmp_path, LAYOUT, "5GB")
    with closing(writer), pytest.raises(ValueError, match="laid out as"):
        writer.copy("a", place)
