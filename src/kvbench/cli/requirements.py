"""What kvbench was installed to need, held against what is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement as Line
from packaging.specifiers import SpecifierSet

TOOLS = "dev"  # the extra of whoever develops kvbench


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that is needed.

    Args:
        name: as pip knows it.
        limits: of its version.
        extra: of kvbench that asks for it; "" where all of it does.
        installed: version that there is; None for none.
    """

    name: str
    limits: SpecifierSet
    extra: str
    installed: str | None

    @property
    def is_met(self) -> bool:
        """Whether what there is will do."""
        return self.installed is not None and self.limits.contains(self.installed, prereleases=True)

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install '{self.name}{self.limits}'"


def requirements(lines: Sequence[str], extras: Sequence[str]) -> Iterator[Requirement]:
    """Yield what this machine is asked for, but for tools of development.

    Args:
        lines: as a package's metadata has them.
        extras: that the package has.
    """
    for line in map(Line, lines):
        marker = line.marker
        asking = [extra for extra in ("", *extras) if marker is None or marker.evaluate({"extra": extra})]
        if asking and asking[0] != TOOLS:
            installed = version_of(line.name)
            yield Requirement(name=line.name, limits=line.specifier, extra=asking[0], installed=installed)


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
