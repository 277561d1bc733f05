"""How much memory a process or a device holds, and the most it held: counted by the system, never sampled.

A sampler misses what lives shorter than its period, and a first-touch or a concatenation is just that.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

PROC = Path("/proc/self")
_M_MMAP_THRESHOLD = -3  # of mallopt
_LARGE_BLOCK_BYTES = 2**17  # what glibc begins with
_RESET_PEAK = "5"  # to clear_refs: the peak becomes what is resident now


class MemoryMeter:
    """Bytes of a device: of this process on a CPU, of torch's allocator on a GPU; of several GPUs, added.

    Args:
        device: whose.
        proc: folder in which the system describes this process.
        others: GPUs beside it; the sum of their peaks is the most they can have held at once.
    """

    def __init__(self, device: torch.device, proc: Path = PROC, *, others: Sequence[torch.device] = ()) -> None:
        """Begin without a peak, unless the device always has one."""
        self.device, self._proc = device, proc
        self._gpus = (device, *others) if device.type == "cuda" else ()
        self._has_peak = device.type == "cuda"

    def settle(self) -> None:
        """Give everything that is free back, so that what is held is what is used."""
        gc.collect()
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        if self._gpus:
            torch.cuda.empty_cache()
        if sys.platform == "linux":
            libc = ctypes.CDLL(None)
            if hasattr(libc, "malloc_trim"):  # glibc alone has it
                libc.malloc_trim(0)

    def reset(self) -> None:
        """Begin a new peak at what is held now."""
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        if self.device.type == "cpu":
            self._has_peak = self._reset_process()

    def peak_bytes(self) -> int | None:
        """Return the most that was held since the last reset; None where the system does not tell, never a guess."""
        if not self._has_peak:
            return None
        if self._gpus:
            return sum(map(torch.cuda.max_memory_allocated, self._gpus))
        return self._status("VmHWM")

    def held_bytes(self) -> int | None:
        """Return what is held now: allocated on a GPU, resident on a CPU."""
        if self._gpus:
            return sum(map(torch.cuda.memory_allocated, self._gpus))
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory()
        return self.resident_bytes()

    def reserved_bytes(self) -> int | None:
        """Return the most that torch's allocator took from GPUs since the last reset; None elsewhere."""
        return sum(map(torch.cuda.max_memory_reserved, self._gpus)) if self._gpus else None

    def resident_bytes(self) -> int | None:
        """Return the host memory this process holds now; None where the system does not tell."""
        return self._status("VmRSS")

    def _reset_process(self) -> bool:
        try:
            (self._proc / "clear_refs").write_text(_RESET_PEAK)
        except OSError:
            return False  # not Linux, or a container forbids it
        return True

    def _status(self, name: str) -> int | None:
        path = self._proc / "status"
        if not path.exists():
            return None
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        return None


def return_large_blocks() -> None:
    """Have every block of 128 KiB or more mapped on its own, and given back when it is freed, in this process.

    glibc otherwise raises its threshold as blocks are freed and keeps the next ones on a heap, whose holes count as
    resident: the same prompt then peaks at anything between one and two times what its tensors take.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc and others
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
