"""Telling models apart: by every byte, or by what the system knows of their files.

``Source.fingerprint`` reads the ends of every tensor, which is quick, and leaves the middle open.
"""

import hashlib
from collections.abc import Mapping

from torch import Tensor

from deepen.base.checkpoint import FolderSource, Source, as_bytes


def sha256_of(source: Source, known: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 over every tensor's name, dtype, shape and SHA-256, sorted by name.

    How the tensors are sharded plays no part.

    Args:
        source: The model; a GB is read and hashed in about a second.
        known: Tensor name → SHA-256 of its bytes, where they need not be read again.
    """
    digest, known = hashlib.sha256(), known or {}
    for name in sorted(source.infos):
        info = source.infos[name]
        own = known.get(name) or tensor_digest(source.load(name))
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0{own}\0".encode())
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes as they are stored."""
    return hashlib.sha256(as_bytes(tensor).numpy().data).hexdigest()


def difference(source: Source, fingerprint: str, sha256: str | None) -> str | None:
    """Say how a model differs from one of which the digests were recorded.

    Args:
        source: The model.
        fingerprint: The other one's.
        sha256: The other one's, unless its record is older.

    Returns:
        The predicate of a sentence; ``None`` if it is the same model.
    """
    if source.fingerprint != fingerprint:
        return f"has fingerprint {source.fingerprint[:12]} and not {fingerprint[:12]}"
    if sha256 is None or (own := sha256_of(source)) == sha256:
        return None
    return f"has SHA-256 {own[:12]} and not {sha256[:12]}, in the middle of a tensor"


def state_of(source: FolderSource) -> list[list[str | int]]:
    """Return name, size, time of the last change and inode of config.json and the weight files.

    They change when a file is replaced or written to, and cost nothing: what is read for minutes
    can be held to them.
    """
    files = [source.folder / "config.json", *source.weight_files]
    found = [(file.name, file.stat()) for file in files]
    return [[name, now.st_size, now.st_mtime_ns, now.st_ino] for name, now in found]
