"""The bytes of a stored tensor, where they lie, read without making a tensor of them."""

import errno
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
_NOT_COPIED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EBADF)
"""What systems and file systems say that do not copy from the one file to the other."""


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

    def joined(self, other: "Stored") -> "Stored | None":
        """Return this and what follows it as one; ``None`` if the other does not follow."""
        if other.file != self.file or other.offset != self.offset + self.nbytes:
            return None
        return Stored(self.file, self.offset, self.nbytes + other.nbytes)

    def ends(self, length: int) -> tuple[bytes, bytes]:
        """Return the first and the last bytes, at most so many of each."""
        length = min(length, self.nbytes)
        with self.file.open("rb") as stream:
            handle, last = stream.fileno(), self.offset + self.nbytes - length
            return os.pread(handle, length, self.offset), os.pread(handle, length, last)


def copy_bytes(stored: Stored, handle: int, at: int) -> None:
    """Copy bytes into another file.

    The system does it where it can, without their passing through this process: file systems that
    share blocks between files may write nothing at all.

    Args:
        stored: What is copied.
        handle: The other file, open for writing.
        at: Where in it they go.

    Raises:
        OSError: The file has become shorter, or the disk is full.
    """
    done = 0
    if hasattr(os, "copy_file_range"):
        with stored.file.open("rb") as stream:
            done = _copied_by_system(stored, stream.fileno(), handle, at)
    rest = Stored(stored.file, stored.offset + done, stored.nbytes - done)
    for piece in rest.pieces():
        written = 0
        while written < len(piece):
            written += os.pwrite(handle, piece[written:], at + done + written)
        done += len(piece)


def _copied_by_system(stored: Stored, source: int, handle: int, at: int) -> int:
    """Copy as many bytes as the system copies itself, and say how many those are."""
    done = 0
    while done < stored.nbytes:
        try:
            more = os.copy_file_range(
                source, handle, stored.nbytes - done, stored.offset + done, at + done
            )
        except OSError as error:
            if error.errno not in _NOT_COPIED:
                raise
            break
        if more == 0:  # some file systems know no length; what is read tells
            break
        done += more
    return done


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
