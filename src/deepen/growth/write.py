"""Write safetensors shards tensor by tensor, so that memory holds one tensor and not one shard.

``safetensors.save_file`` needs a whole shard in memory. The format is simple enough to do without:
an 8-byte little-endian header length, a JSON header that gives each tensor's dtype, shape and byte
range, then the bytes. All of that is known before the first tensor is made.

What is written is hashed as it passes, so that a manifest tells what was meant to be written, and
nothing is read again for it. A tensor that lies in another file as it is wanted is looked at there,
a few MB at a time, and the system copies it from file to file, with its neighbours in one call.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from deepen.base.checkpoint import DTYPES, TensorInfo, as_bytes, info_of
from deepen.base.weights.raw import Stored, copy_bytes
from deepen.base.weights.values import largest_of, magnitude_of
from deepen.common.bounded import parse_json, read_json
from deepen.common.errors import DeepenError
from deepen.common.files import write_whole
from deepen.records.verification import FileDigest

INDEX = "model.safetensors.index.json"
_UNFINISHED = ".part"
_MOST_AT_ONCE = 2**28
"""Bytes copied in one call at most: they were just looked at, and are still in memory."""
_SIZE = re.compile(r"\s*\d{1,12}(\.\d{1,12})?\s*[KMGT]B\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """Where each tensor of one file goes."""

    header: bytes
    """The file's first bytes, length field included."""
    offsets: Mapping[str, int]
    """Tensor name → position in the file."""

    @classmethod
    def of(cls, infos: Mapping[str, TensorInfo]) -> "Shard":
        """Lay out one file; wider dtypes stand first, so that every tensor is aligned."""
        by_width = sorted(infos, key=lambda name: -DTYPES[infos[name].dtype].itemsize)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        starts, end = {}, 0
        for name in by_width:
            starts[name], end = end, end + infos[name].nbytes
            entries[name] = {
                "dtype": infos[name].dtype,
                "shape": infos[name].shape,
                "data_offsets": [starts[name], end],
            }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        header = struct.pack("<Q", len(text)) + text
        return cls(header, {name: len(header) + start for name, start in starts.items()})


class _Unfinished:
    """A shard that is being written, and hashed as its bytes pass."""

    def __init__(self, shard: Shard, stream: BufferedRandom) -> None:
        """Write the header."""
        self.stream = stream
        self._shard, self._digest = shard, hashlib.sha256(shard.header)
        self._ahead = list(shard.offsets)[::-1]  # what is not hashed yet, the next one last
        self._early: dict[str, tuple[int, str]] = {}  # what of it is written: size and SHA-256
        self._run: tuple[Stored, int] | None = None  # what is still to be copied, and where to
        stream.write(shard.header)

    def write(self, name: str, raw: memoryview, sha256: str) -> None:
        """Write one tensor, given its SHA-256.

        Mostly they come as they stand in the file. One that comes earlier is read back in its turn.

        Raises:
            OSError: It was not what had been written.
        """
        self.stream.seek(self._shard.offsets[name])
        self.stream.write(raw)
        if name == self._ahead[-1]:
            self._digest.update(raw)
        self._passed(name, len(raw), sha256)

    def copy(
        self, name: str, stored: Stored, dtype: str, beside: ThreadPoolExecutor
    ) -> tuple[str, float]:
        """Copy one tensor from where it lies in another file.

        Args:
            name: Which one.
            stored: Where it lies.
            dtype: What its numbers are, by safetensors' name.
            beside: Runs one of the two digests while the other one runs here: neither holds the
                interpreter.

        Returns:
            SHA-256 of its bytes; the largest absolute value of its numbers, or NaN.
        """
        own, largest, is_next = hashlib.sha256(), 0.0, name == self._ahead[-1]
        for piece in stored.pieces():
            hashed = beside.submit(own.update, piece)
            if is_next:
                self._digest.update(piece)
            largest = largest_of(largest, magnitude_of(piece, dtype))
            hashed.result()
        self._add(stored, self._shard.offsets[name])
        self._passed(name, stored.nbytes, own.hexdigest())
        return own.hexdigest(), largest

    def _add(self, stored: Stored, at: int) -> None:
        """Note what is to be copied, and copy what does not go together with it."""
        if self._run is not None:
            run, start = self._run
            joined = run.joined(stored)
            if joined and at == start + run.nbytes and joined.nbytes <= _MOST_AT_ONCE:
                self._run = joined, start
                return
            self._copy_run()
        self._run = stored, at

    def _copy_run(self) -> None:
        """Copy what was noted."""
        if self._run is not None:
            self.stream.flush()
            copy_bytes(self._run[0], self.stream.fileno(), self._run[1])
            self._run = None

    def _passed(self, name: str, size: int, sha256: str) -> None:
        """Go on with the digest behind a tensor, which has it if it was the next one."""
        if name != self._ahead[-1]:
            self._early[name] = size, sha256
            return
        self._ahead.pop()
        while self._ahead and self._ahead[-1] in self._early:
            self._read_back(self._ahead.pop())

    def _read_back(self, name: str) -> None:
        """Hash what was written before its turn."""
        self._copy_run()
        size, sha256 = self._early.pop(name)
        self.stream.seek(self._shard.offsets[name])
        raw = self.stream.read(size)
        if hashlib.sha256(raw).hexdigest() != sha256:
            reason = "the disk returns something else than was written"
            raise OSError(errno.EIO, reason, self.stream.name)
        self._digest.update(raw)

    def finish(self) -> FileDigest:
        """Bring the whole shard to the disk, and close it."""
        self._copy_run()
        self.stream.flush()
        os.fsync(self.stream.fileno())
        size = os.fstat(self.stream.fileno()).st_size
        self.stream.close()
        return FileDigest(sha256=self._digest.hexdigest(), size_bytes=size)


def layout_of(header: str) -> dict[str, TensorInfo]:
    """Return what a header says of the tensors, in the order in which they stand in the file.

    Raises:
        DeepenError: It is none.
    """
    try:
        content = parse_json(header, "The header of a weight file")
        entries = {name: e for name, e in content.items() if name != "__metadata__"}
        infos = {
            name: TensorInfo(entry["dtype"], tuple(map(int, entry["shape"])))
            for name, entry in sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])
        }
        if any(info.nbytes < 0 for info in infos.values()):
            raise ValueError(header)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DeepenError(
            "The header of a weight file does not say how tensors lie in it; fetch the checkpoint "
            "or pack again."
        ) from None
    return infos


def write_file(file: Path, header: str, load: Callable[[str], Tensor]) -> None:
    """Write a safetensors file of a known header, tensor by tensor.

    Args:
        file: What is written; it gets its name once it is whole.
        header: Its header, as ``read_header`` returns it.
        load: Returns a tensor by name; it is stored in the header's dtype.

    Raises:
        ValueError: A tensor has not the header's shape.
    """
    unfinished, text = file.with_name(file.name + _UNFINISHED), header.encode()
    with unfinished.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, info in layout_of(header).items():
            tensor = load(name).to(DTYPES[info.dtype])
            if info_of(tensor, name) != info:
                raise ValueError(f"{name} is {info_of(tensor, name)}, laid out as {info}")
            stream.write(as_bytes(tensor).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.rename(file)


class ShardWriter:
    """Writes the tensors of a known layout, in any order, into a folder."""

    def __init__(
        self,
        folder: Path,
        layout: Mapping[str, TensorInfo],
        max_shard_size: int | str,
        written: Path | None = None,
    ) -> None:
        """Divide the layout into shards.

        Args:
            folder: Where they are written.
            layout: What tensors there will be.
            max_shard_size: Largest size of a file.
            written: A file that tells the SHA-256 of every tensor of finished shards. A killed
                run's shards are kept if they still agree with it; all else in the folder goes.

        Raises:
            DeepenError: The shard size is not a size.
        """
        size = max_shard_size
        if not (_SIZE.fullmatch(size) if isinstance(size, str) else size > 0):
            raise DeepenError(
                f"Shard size {str(size)[:80]!r} is not a size; write for example 5GB or 500MB."
            )
        self._split = split_state_dict_into_shards_factory(
            dict(layout),
            get_storage_size=lambda info: info.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=size,
        )
        self._folder, self._layout = folder, layout
        self._beside = ThreadPoolExecutor(1, "deepen-hash")
        self._open: dict[str, _Unfinished] = {}
        self._written = written
        self.digests: dict[str, str] = {}
        """Tensor name → SHA-256 of its bytes, of what is written."""
        self.files: dict[str, FileDigest] = {}
        """The finished shards."""
        self._missing = {
            file: set(names) for file, names in self._split.filename_to_tensors.items()
        }
        if written is not None:
            self._take_over(written)

    def wants(self, name: str) -> bool:
        """Whether a tensor is still to be written."""
        return name in self._missing.get(self._split.tensor_to_filename[name], ())

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; the file gets its final name once all its tensors are there."""
        if info_of(tensor, name) != self._layout[name]:
            raise ValueError(f"{name} is {info_of(tensor, name)}, laid out as {self._layout[name]}")
        file = self._split.tensor_to_filename[name]
        shard = self._open.get(file) or self._start(file)
        raw = as_bytes(tensor).numpy().data
        self.digests[name] = hashlib.sha256(raw).hexdigest()
        shard.write(name, raw, self.digests[name])
        self._tick(name, file, shard)

    def copy(self, name: str, stored: Stored) -> float:
        """Copy one tensor as it lies in another file, in the dtype and shape that it has here.

        Returns:
            The largest absolute value of its numbers, or NaN if there is one; 0 of no floats.
        """
        info = self._layout[name]
        if stored.nbytes != info.nbytes:
            raise ValueError(f"{name} takes {stored.nbytes} bytes, laid out as {info}")
        file = self._split.tensor_to_filename[name]
        shard = self._open.get(file) or self._start(file)
        self.digests[name], largest = shard.copy(name, stored, info.dtype, self._beside)
        self._tick(name, file, shard)
        return largest

    def _tick(self, name: str, file: str, shard: _Unfinished) -> None:
        """Note that a tensor is written, and finish the file if it was the last one."""
        self._missing[file].remove(name)
        if not self._missing[file]:
            self._finish(file, shard)

    def finish(self) -> None:
        """Write the index, once every tensor has been written."""
        if self._missing:
            raise ValueError(f"tensors were never written: {self._missing}")
        if self._split.is_sharded:
            index = {
                "metadata": {"total_size": self._split.metadata["total_size"]},
                "weight_map": self._split.tensor_to_filename,
            }
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self._folder / INDEX).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Close all files, finished or not."""
        self._beside.shutdown(cancel_futures=True)
        for shard in self._open.values():
            shard.stream.close()

    def _start(self, file: str) -> _Unfinished:
        """Open a shard under its unfinished name."""
        stream = (self._folder / (file + _UNFINISHED)).open("w+b")
        return self._open.setdefault(file, _Unfinished(self._shard(file), stream))

    def _finish(self, file: str, shard: _Unfinished) -> None:
        """Bring a whole shard to disk under its final name."""
        self.files[file] = shard.finish()
        del self._open[file], self._missing[file]
        if self._written is not None:  # before the shard has its name, so that none is without
            write_whole(self._written, json.dumps(self.digests))
        (self._folder / (file + _UNFINISHED)).rename(self._folder / file)

    def _shard(self, file: str) -> Shard:
        """Lay out one file."""
        names = self._split.filename_to_tensors[file]
        return Shard.of({name: self._layout[name] for name in names})

    def _take_over(self, written: Path) -> None:
        """Keep the shards of a killed run that are as they were written, and nothing else."""
        try:
            told = read_json(written)
        except DeepenError:
            told = {}
        told = told if isinstance(told, dict) else {}
        for path in sorted(self._folder.iterdir()):
            if path.name in self._missing and (found := self._as_written(path, told)):
                names = self._missing.pop(path.name)
                self.digests |= {name: told[name] for name in names}
                self.files[path.name] = found
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _as_written(self, file: Path, told: Mapping[str, str]) -> FileDigest | None:
        """Describe a shard with the header that it must have, and tensors as they were written."""
        if not stat.S_ISREG(file.lstat().st_mode):
            return None
        shard = self._shard(file.name)
        with file.open("rb") as stream:
            if stream.read(len(shard.header)) != shard.header:
                return None
            digest = hashlib.sha256(shard.header)
            for name in shard.offsets:  # one after the other, as they stand in the file
                raw = stream.read(self._layout[name].nbytes)
                if hashlib.sha256(raw).hexdigest() != told.get(name):
                    return None
                digest.update(raw)
            if stream.read(1):
                return None
            return FileDigest(sha256=digest.hexdigest(), size_bytes=stream.tell())
