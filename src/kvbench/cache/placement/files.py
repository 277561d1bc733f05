"""A file without a name: gone with its last reader, however the process ends."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor


class File:
    """Bytes on disk.

    Args:
        num_bytes: room that is taken at once.
        folder: where the file lies; "" for the system's folder of temporary files.
        advice: what to choose instead where that fails, for the message.

    Raises:
        ValueError: if there is no room, or the folder cannot be written.
    """

    def __init__(self, num_bytes: int, folder: str, advice: str) -> None:
        self._folder, self._advice, self.num_bytes = folder or tempfile.gettempdir(), advice, 0
        self._writing: list[Future[None]] = []
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - as long as this lives
        except OSError as error:
            raise self._refusal(num_bytes, error) from None
        weakref.finalize(self, self._file.close)
        self.grow(num_bytes)

    def grow(self, num_bytes: int) -> None:
        """Take more room.

        Raises:
            ValueError: if there is none.
        """
        try:
            os.posix_fallocate(self._file.fileno(), 0, num_bytes)
        except OSError as error:
            raise self._refusal(num_bytes, error) from None
        self.num_bytes = num_bytes

    def _refusal(self, num_bytes: int, error: OSError) -> ValueError:
        return ValueError(
            f"{num_bytes} bytes of the cache cannot be kept in {self._folder}: {error.strerror}. {self._advice}"
        )

    def write(self, first: int, data: Tensor) -> None:
        """Write a contiguous tensor from a byte on."""
        file = self._file.fileno()
        _whole(lambda rest, done: os.pwrite(file, rest, first + done), data)

    def write_behind(self, first: int, data: Tensor) -> None:
        """Write a contiguous tensor that nobody changes, while the caller goes on."""
        self._writing.append(_writer().submit(self.write, first, data))

    def read(self, first: int, into: Tensor) -> None:
        """Read a contiguous tensor from a byte on, once everything is written."""
        self._finish()
        file = self._file.fileno()
        _whole(lambda rest, done: os.preadv(file, [rest], first + done), into)

    def mapped(self) -> mmap.mmap:
        """Return all of it as memory, which outlives this; there is room for it, or a write would end the process."""
        return mmap.mmap(self._file.fileno(), self.num_bytes)

    def close(self) -> None:
        """Close the file once everything is written."""
        self._finish()
        self._file.close()

    def _finish(self) -> None:
        while self._writing:
            self._writing.pop().result()

    def forget(self) -> None:
        """Have the operating system forget what it remembers of the file, so that it is read from disk again."""
        os.fdatasync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")


def _whole(move: Callable[[memoryview, int], int], data: Tensor) -> None:
    """Move all bytes, however few the operating system takes at once."""
    rest, done = memoryview(data.view(-1).view(torch.uint8).numpy()), 0  # type: ignore[arg-type]
    while done < len(rest):
        moved = move(rest[done:], done)
        assert moved > 0, "a file nobody else can open ended early"
        done += moved
