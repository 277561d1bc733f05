"""Memory meters that report something else."""

from __future__ import annotations

from kvbench.measure.memory import MemoryMeter


class Sampled(MemoryMeter):
    """Looks at what is held when asked, and so misses what was freed."""

    def peak_bytes(self) -> int | None:
        """Return what is held now."""
        return self.resident_bytes()


class NeverReset(MemoryMeter):
    """Reports the peak of the whole process."""

    def reset(self) -> None:
        """Do nothing but believe."""
        self._has_peak = True


class Guessing(MemoryMeter):
    """Reports the process's peak even where it could not be reset."""

    def peak_bytes(self) -> int | None:
        """Return the peak since the process began."""
        return self._status("VmHWM")


PEAKS = (Sampled, NeverReset)
