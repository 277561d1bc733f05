"""What kvbench was installed to need, held against what is installed."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

_LINE = re.compile(r"(?P<name>[\w.-]+)\s*(?:\((?P<old>[^)]*)\)|(?P<limits>[^;]*))(?:;(?P<when>.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")
_LIMIT = re.compile(r"(>=|<=|==|!=|>|<)\s*([\w.*+!-]+)")
_OPERATORS: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that is needed.

    Args:
        name: as pip knows it.
        limits: of its version, such as ">=2,<3"; "" for any.
        extra: of kvbench that asks for it; "" where all of it does.
        installed: version that there is; None for none.
    """

    name: str
    limits: str
    extra: str
    installed: str | None

    @property
    def is_met(self) -> bool:
        """Whether what there is will do."""
        return self.installed is not None and within(self.installed, self.limits)

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install '{self.name}{self.limits}'"


def requirements(lines: Sequence[str]) -> Iterator[Requirement]:
    """Yield what is asked for, but for tools of development.

    Args:
        lines: as a package's metadata has them.
    """
    for line in lines:
        found = _LINE.fullmatch(line.strip())
        assert found, line
        extra = _EXTRA.search(found["when"] or "")
        if extra is None or extra[1] != "dev":
            limits = ",".join(
                sorted(part.strip() for part in (found["old"] or found["limits"] or "").split(",") if part)
            )
            name = found["name"]
            yield Requirement(name=name, limits=limits, extra=extra[1] if extra else "", installed=version_of(name))


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def within(version: str, limits: str) -> bool:
    """Return whether a version keeps to limits, by its leading numbers: what comes behind them is none of a user's."""
    for sign, limit in _LIMIT.findall(limits):
        mine, theirs = _numbers(version), _numbers(limit)
        width = max(len(mine), len(theirs))
        if not _OPERATORS[sign](mine + (0,) * (width - len(mine)), theirs + (0,) * (width - len(theirs))):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
