"""Telling models apart."""

import hashlib
import os
import shutil

from safetensors.torch import load_file, save_file

import tiny
from deepen.base.checkpoint import FolderSource, as_bytes
from deepen.base.identity import difference, sha256_of, state_of

MIDDLE = "model.embed_tokens.weight"


def changed_in_the_middle(base, folder):
    """Copy a base, with one number changed that ``Source.fingerprint`` does not look at."""
    tensors = load_file(shutil.copytree(base, folder) / "model.safetensors")
    tensors[MIDDLE][len(tensors[MIDDLE]) // 2, 0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_every_byte_counts_and_sharding_does_not(tmp_path):
    base = tiny.save(tmp_path / "base", hidden_size=512, num_attention_heads=4, head_dim=8)
    source = FolderSource(base)
    other = FolderSource(changed_in_the_middle(base, tmp_path / "other"))
    assert other.fingerprint == source.fingerprint
    assert sha256_of(other) != sha256_of(source)
    tiny.load(base, None).save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(FolderSource(tmp_path / "shards").weight_files) > 1
    assert sha256_of(FolderSource(tmp_path / "shards")) == sha256_of(source)
    known = {MIDDLE: hashlib.sha256(as_bytes(source.load(MIDDLE)).numpy().data).hexdigest()}
    assert sha256_of(other, known) == sha256_of(source)  # it is taken at its word
    recorded = source.fingerprint, sha256_of(source)
    assert difference(source, *recorded) is None
    assert "middle of a tensor" in difference(other, *recorded)
    assert difference(other, source.fingerprint, None) is None  # an older record
    assert difference(source, "0" * 64, None).endswith("and not 000000000000")


def test_files_that_change_are_seen(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    before, weights = state_of(FolderSource(base)), base / "model.safetensors"
    assert before == state_of(FolderSource(base))
    when = weights.stat().st_mtime_ns
    os.utime(weights, ns=(when, when + 1))
    written = state_of(FolderSource(base))
    weights.write_bytes(shutil.copyfile(weights, tmp_path / "copy").read_bytes())
    os.utime(tmp_path / "copy", ns=(when, when))
    (tmp_path / "copy").replace(weights)
    assert len({str(state) for state in (before, written, state_of(FolderSource(base)))}) == 3
