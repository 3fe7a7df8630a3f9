"""The bytes of a stored tensor, where they lie, read without making a tensor of them."""

import json
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "F8_E4M3": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""safetensors' name of a dtype → bytes of one number."""
_PIECE = 2**22
"""Bytes that are mapped at a time: few enough to stay in a CPU's cache while they are looked at."""


@dataclass(frozen=True)
class Stored:
    """Where the bytes of one tensor lie."""

    file: Path
    """The file."""
    offset: int
    """Position of the first one in it."""
    nbytes: int
    """How many there are."""

    def pieces(self) -> Iterator[memoryview]:
        """Yield all bytes in order, a piece at a time, mapped from disk.

        Mapping spares the copy into memory of one's own that reading makes. A piece leaves memory
        as soon as nothing refers to it.
        """
        with self.file.open("rb") as stream:
            for start in range(self.offset, self.offset + self.nbytes, _PIECE):
                length = min(_PIECE, self.offset + self.nbytes - start)
                beyond = start % mmap.ALLOCATIONGRANULARITY
                mapped = mmap.mmap(
                    stream.fileno(),
                    length + beyond,
                    access=mmap.ACCESS_READ,
                    offset=start - beyond,
                )
                yield memoryview(mapped)[beyond:]

    def ends(self, length: int) -> tuple[bytes, bytes]:
        """Return the first and the last bytes, at most so many of each."""
        length = min(length, self.nbytes)
        with self.file.open("rb") as stream:
            handle, last = stream.fileno(), self.offset + self.nbytes - length
            return os.pread(handle, length, self.offset), os.pread(handle, length, last)


def read_header(file: Path) -> str:
    """Return a safetensors file's header, which says where every tensor stands in it."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return str(stream.read(length), "utf-8")


def places_in(file: Path) -> dict[str, Stored]:
    """Return where every tensor of a sound safetensors file lies, by name."""
    header = read_header(file)
    start = 8 + len(header.encode())
    return {
        name: Stored(file, start + entry["data_offsets"][0], _length(*entry["data_offsets"]))
        for name, entry in json.loads(header).items()
        if name != "__metadata__"
    }


def _length(start: int, end: int) -> int:
    """Return how many bytes a range has."""
    return end - start
