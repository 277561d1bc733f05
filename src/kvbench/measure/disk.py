"""A disk: blocks written in order, and read in no order, from the disk itself and from memory that keeps them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

from kvbench.measure.clock import HostClock
from kvbench.measure.rates import Capability, rates

BLOCKS = {"4K": 4 * 2**10, "64K": 64 * 2**10, "1M": 2**20}
REPEATS = 5
_MOST_BLOCKS = 1024  # in a repeat
_REGION = 16 * 2**20  # bytes in a repeat, at most


def measure_disk(folder: Path, num_threads: int, region_bytes: int = _REGION) -> list[Capability]:
    """Return what is written and read per second, by the size of a block; the files are gone afterwards.

    Every repeat reads a part of the file that was not read before, so that cold reads stay cold; where the file system
    keeps what it is told to drop, there are none.

    Args:
        folder: on the disk; made if it is not there.
        num_threads: of the CPU, as the other numbers have it; one reads and writes.
        region_bytes: of a repeat, at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Capability] = []
    with TemporaryDirectory(dir=folder, prefix="kvbench-disk-") as inside:
        for label, block in BLOCKS.items():
            region = max(block, min(region_bytes, _MOST_BLOCKS * block))
            ways = _ways(Path(inside) / label, block, region)
            for name, operation in ways:
                value, low, high = rates(operation, region, HostClock(), REPEATS)
                found.append(
                    Capability(
                        name=f"{name}_{label}",
                        device=str(folder),
                        num_threads=num_threads,
                        dtype="uint8",
                        num_bytes=region,
                        shape="",
                        unit="bytes/s",
                        value=value,
                        low=low,
                        high=high,
                    )
                )
    return found


def _ways(file: Path, block: int, region: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what writes a region, what reads one from the disk, and what reads one from memory, in this order."""
    starts, order = starts_of(region), order_of(block, region)
    data = random.Random(0).randbytes(block)
    with _opened(file) as handle:

        def write() -> None:
            start = next(starts)
            for offset in range(0, region, block):
                os.pwrite(handle, data, start + offset)
            os.fsync(handle)

        def read() -> None:
            start = next(starts)
            for offset in order:
                os.pread(handle, block, start + offset)

        yield "disk_write", write
        if dropped(handle):
            yield "disk_read_cold", read
        else:
            read_all(handle, block)
        yield "disk_read_warm", read


def starts_of(region: int) -> Iterator[int]:
    """Yield where each repeat begins, one part of the file after the other; the first is not timed."""
    return cycle(range(0, (REPEATS + 1) * region, region))


def order_of(block: int, region: int) -> list[int]:
    """Return where the blocks of a part begin, in no order."""
    return random.Random(0).sample(range(0, region, block), region // block)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def dropped(handle: int) -> bool:
    """Ask the system to forget what it keeps of a file in memory; return whether it did.

    Args:
        handle: of an open file with nothing left to write.
    """
    if not (hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")):
        return False
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
    try:
        os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT)  # fails where the disk would have to be asked
    except BlockingIOError:
        return True
    except OSError:
        return False  # nobody can tell
    return False


def read_all(handle: int, block: int) -> None:
    """Read a whole file."""
    for offset in range(0, os.fstat(handle).st_size, block):
        os.pread(handle, block, offset)
