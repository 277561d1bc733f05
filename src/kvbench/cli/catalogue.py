"""`kvbench list`: what there is, in the words of each yaml's first comment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from kvbench.configuration.errors import ConfigError, hint

CONF = "kvbench.conf"
SHOWN = (  # in this order
    "model",
    "strategy",
    "workload",
    "engine",
    "scheduler",
    "quality",
    "experiment",
    "row",
    "measure",
    "sink",
)
_CATEGORY = re.compile(r"^# Category: (?P<category>.+)$", re.MULTILINE)
_NOTHING_OF_ITS_OWN = re.compile(r"(#.*\n)*defaults:\n  - (?P<name>\w+)\n  - _self_\n")


def main(kind: str, *, markdown: bool) -> None:
    """Print every choice of every group with one line each.

    Args:
        kind: only this group and those below it; "" for all.
        markdown: as a page for the documentation.
    """
    groups = dict(catalogue())
    wanted = [name for name in groups if not kind or name == kind or name.startswith(f"{kind}/")]
    if not wanted:
        raise ConfigError(f"there is nothing called {kind}. {hint(kind, groups, label='Kinds')}")
    print(_page(groups, wanted) if markdown else _listing(groups, wanted))


def catalogue() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every group with what its choices say of themselves."""
    root = files(CONF)
    for name in SHOWN:
        yield from _group(root / name, name)


def _group(folder: Traversable, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    yield name, {entry.name.removesuffix(".yaml"): first_line(entry) for entry in _yamls(folder)}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _group(entry, f"{name}/{entry.name}")


def first_line(file: Traversable) -> str:
    """Return what a yaml says of itself in its first comment."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def aliases() -> dict[str, str]:
    """Return whose other name a strategy is: its yaml inherits that one and says nothing of its own."""
    inherited = {name: _NOTHING_OF_ITS_OWN.fullmatch(text) for name, text in _strategies().items()}
    return {name: found["name"] for name, found in inherited.items() if found}


def categories() -> dict[str, str]:
    """Return what each strategy's yaml calls its category; of those that call it something."""
    found = {name: _CATEGORY.search(text) for name, text in _strategies().items()}
    return {name: said["category"] for name, said in found.items() if said}


def _strategies() -> dict[str, str]:
    return {e.name.removesuffix(".yaml"): e.read_text(encoding="utf-8") for e in _yamls(files(CONF) / "strategy")}


def _yamls(folder: Traversable) -> list[Traversable]:
    return sorted((e for e in folder.iterdir() if e.name.endswith(".yaml")), key=lambda entry: entry.name)


def _listing(groups: dict[str, dict[str, str]], wanted: list[str]) -> str:
    width = max(len(name) for group in wanted for name in groups[group])
    blocks = []
    for group in wanted:
        lines = [f"  {name:{width}}  {text}" for name, text in groups[group].items()]
        blocks.append("\n".join([f"{group}=", *lines]))
    return "\n\n".join(blocks)


def _page(groups: dict[str, dict[str, str]], wanted: list[str]) -> str:
    blocks = ["# What there is\n\nWritten by `make docs` from the first comment of each yaml."]
    for group in wanted:
        rows = [f"| `{group}={name}` | {text} |" for name, text in groups[group].items()]
        blocks.append("\n".join([f"## {group}", "", "| choice | what it is |", "| --- | --- |", *rows]))
    return "\n\n".join(blocks)
