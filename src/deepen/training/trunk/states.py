"""States of sequences in a file that several processes fill and read at once.

The file begins with one mark of 8 bytes for each sequence: 0, or 2³² plus the CRC-32 of its state.
The states follow, each in its place; places that were never written take no space on the disk. A
mark is written after its state, and a state counts only if its bytes have the marked sum: a kill, a
power cut or a damaged disk at any moment leaves it to be computed again.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from deepen.base.checkpoint import as_bytes

_MARK = struct.Struct("<Q")
_WRITTEN = 2**32
_PAGE = 4096


class States:
    """The states of one source's sequences, by their index."""

    def __init__(
        self, file: Path, sequences: int, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """Open the file, making it if need be.

        Args:
            file: Its place; whatever decides the states must be in its name.
            sequences: How many the source has.
            shape: Tokens in a sequence, and the hidden size.
            dtype: Of the states.
        """
        self._file, self._sequences, self._shape, self._dtype = file, sequences, shape, dtype
        self.state_bytes = shape[0] * shape[1] * dtype.itemsize
        """Size of a state."""
        self._begin = -(-sequences * _MARK.size // _PAGE) * _PAGE
        self._whole: set[int] = set()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if os.fstat(self._descriptor).st_size < (size := self._place(sequences)):
            os.ftruncate(self._descriptor, size)

    def __getstate__(self) -> tuple[object, ...]:
        """Leave the open file behind: each process opens it for itself."""
        return self._file, self._sequences, self._shape, self._dtype

    def __setstate__(self, state: tuple[Path, int, tuple[int, int], torch.dtype]) -> None:
        """Open the file again."""
        States.__init__(self, *state)

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def holds(self, index: int) -> bool:
        """Whether the state of a sequence is there and whole."""
        if index in self._whole:
            return True
        mark = os.pread(self._descriptor, _MARK.size, index * _MARK.size)
        if mark != bytes(_MARK.size) and mark == _mark(self._bytes(index)):
            self._whole.add(index)
        return index in self._whole

    def read(self, index: int) -> Tensor:
        """Return the state of a sequence, [tokens, hidden].

        Raises:
            RuntimeError: It is not there.
        """
        if not self.holds(index):
            raise RuntimeError(f"{self._file} has no state of sequence {index}")
        return torch.frombuffer(self._bytes(index), dtype=self._dtype).view(self._shape)

    def write(self, index: int, state: Tensor) -> None:
        """Keep the state of a sequence, [tokens, hidden].

        Raises:
            OSError: The disk is full or broken.
        """
        contents = as_bytes(state.detach().cpu()).numpy().data
        mark, place = _mark(contents), self._place(index)
        while contents:
            written = os.pwrite(self._descriptor, contents, place)
            contents, place = contents[written:], place + written
        os.pwrite(self._descriptor, mark, index * _MARK.size)
        self._whole.add(index)

    @contextmanager
    def claimed(self, index: int, *, wait: bool) -> Iterator[bool]:
        """Claim a sequence, so that no other process computes it too.

        The claim ends with the block or with the process, however that ends.

        Args:
            index: The sequence.
            wait: Whether to wait for a process that has claimed it.

        Yields:
            Whether it is claimed; without waiting it may be another's.
        """
        how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        where = _MARK.size, index * _MARK.size
        try:
            fcntl.lockf(self._descriptor, how, *where)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:  # a file system without locks: at worst, work is done twice
            yield True
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, *where)

    def delete(self) -> None:
        """Delete the file; processes that have it open can go on."""
        self._file.unlink(missing_ok=True)

    def _place(self, index: int) -> int:
        """Return where a state begins."""
        return self._begin + index * self.state_bytes

    def _bytes(self, index: int) -> bytearray:
        """Read a state's bytes, whatever they are."""
        contents = bytearray(self.state_bytes)
        os.preadv(self._descriptor, [contents], self._place(index))
        return contents


def _mark(contents: memoryview | bytearray) -> bytes:
    """Return the mark of a state that is written."""
    return _MARK.pack(_WRITTEN | zlib.crc32(contents))
