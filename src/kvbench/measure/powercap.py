"""What Linux says of the energy that processors have used, where a user may read it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/class/powercap")


class Packages:
    """Counts the energy of all processors of the machine, whoever uses them.

    Args:
        root: folder of the kernel's counters.
    """

    def __init__(self, root: Path = ROOT) -> None:
        named = sorted(root.glob("*/name"))
        self._folders = [file.parent for file in named if file.read_text().startswith("package")]
        self._last: list[int] = [0] * len(self._folders)  # microjoules
        self._before = 0  # what counters that began anew had counted

    def joules(self) -> float | None:
        """Return what was used since some moment [J]; None where nobody counts, or counters may not be read."""
        try:
            now = [_number(folder / "energy_uj") for folder in self._folders]
            for folder, new, old in zip(self._folders, now, self._last, strict=True):
                if new < old:
                    self._before += _number(folder / "max_energy_range_uj")
        except OSError:
            return None
        self._last = now
        return (self._before + sum(now)) / 1e6 if now else None


def _number(file: Path) -> int:
    return int(file.read_text())
