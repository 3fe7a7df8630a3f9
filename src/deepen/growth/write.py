"""Write safetensors shards tensor by tensor, so that memory holds one tensor and not one shard.

``safetensors.save_file`` needs a whole shard in memory. The format is simple enough to do without:
an 8-byte little-endian header length, a JSON header that gives each tensor's dtype, shape and byte
range, then the bytes. All of that is known before the first tensor is made.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from deepen.base.checkpoint import DTYPES, TensorInfo, as_bytes, info_of
from deepen.common.errors import DeepenError
from deepen.common.files import write_whole

INDEX = "model.safetensors.index.json"
_UNFINISHED = ".part"
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


def layout_of(header: str) -> dict[str, TensorInfo]:
    """Return what a header says of the tensors, in the order in which they stand in the file."""
    entries = {name: e for name, e in json.loads(header).items() if name != "__metadata__"}
    in_order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    return {
        name: TensorInfo(entries[name]["dtype"], tuple(entries[name]["shape"])) for name in in_order
    }


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
        self._open: dict[str, tuple[Shard, BufferedRandom]] = {}
        self._written = written
        self.digests: dict[str, str] = {}
        """Tensor name → SHA-256 of its bytes, of what is written; empty without ``written``."""
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
        shard, stream = self._open.get(file) or self._start(file)
        raw = as_bytes(tensor).numpy().data
        stream.seek(shard.offsets[name])
        stream.write(raw)
        if self._written is not None:
            self.digests[name] = hashlib.sha256(raw).hexdigest()
        self._missing[file].remove(name)
        if not self._missing[file]:
            self._finish(file, stream)

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
        for _, stream in self._open.values():
            stream.close()

    def _start(self, file: str) -> tuple[Shard, BufferedRandom]:
        """Open a shard under its unfinished name and write its header."""
        shard = self._shard(file)
        stream = (self._folder / (file + _UNFINISHED)).open("w+b")
        stream.write(shard.header)
        self._open[file] = shard, stream
        return shard, stream

    def _finish(self, file: str, stream: BufferedRandom) -> None:
        """Bring a whole shard to disk under its final name."""
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
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
            told = json.loads(written.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {}
        for path in sorted(self._folder.iterdir()):
            if path.name in self._missing and self._is_as_written(path, told):
                names = self._missing.pop(path.name)
                self.digests |= {name: told[name] for name in names}
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _is_as_written(self, file: Path, told: Mapping[str, str]) -> bool:
        """Whether a shard has the header that it must have, and tensors as they were written."""
        if not stat.S_ISREG(file.lstat().st_mode):
            return False
        shard = self._shard(file.name)
        with file.open("rb") as stream:
            if stream.read(len(shard.header)) != shard.header:
                return False
            for name, offset in shard.offsets.items():
                stream.seek(offset)
                raw = stream.read(self._layout[name].nbytes)
                if hashlib.sha256(raw).hexdigest() != told.get(name):
                    return False
            return not stream.read(1)
