"""Which parts go together: every option of every part of a strategy, and why some pairs of them are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import combinations, product
from typing import Any

from kvbench.configuration import build_group, compose, resolved
from kvbench.strategies.base import CacheStrategy

PARTS = (
    "trigger",
    "scorer",
    "budget",
    "selector",
    "evicted",
    "position",
    "reader",
    "layout",
    "codec",
    "placement",
    "transform",
)


def options(part: str) -> list[str]:
    """Return the names of a part's options, as `strategy/<part>=` takes them."""
    entries = (files("kvbench.conf") / "strategy" / part).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


@cache
def built() -> Mapping[tuple[str, str], Any]:
    """Return every option of every part as its yaml makes it, all from one composition."""
    known = [(part, option) for part in PARTS for option in options(part)]
    nodes = resolved(compose([f"+strategy/{part}@options.{part}.{option}={option}" for part, option in known]))
    return {(part, name): build_group(nodes["options"][part][name], f"strategy.{part}") for part, name in known}


@cache
def _full_cache() -> CacheStrategy:
    made = build_group(resolved(compose(["strategy=baseline"]))["strategy"], "strategy")
    assert isinstance(made, CacheStrategy)
    return made


def composed(choice: Mapping[str, str]) -> CacheStrategy:
    """Return the full cache with some parts chosen otherwise.

    Args:
        choice: option per part.

    Raises:
        ValueError: with the reason, if they do not go together.
    """
    return replace(_full_cache(), **{part: built()[part, option] for part, option in choice.items()})


def refusal(choice: Mapping[str, str]) -> str | None:
    """Return why parts do not go together, or None."""
    try:
        composed(choice)
    except ValueError as error:
        return str(error)
    return None


def refused_alone() -> Iterator[tuple[str, str, str]]:
    """Yield every option that goes with a strategy only if other parts change as well, and the reason."""
    for part in PARTS:
        for option in options(part):
            reason = refusal({"budget": "uniform", part: option})
            if reason is not None:
                yield part, option, reason


def refused_pairs() -> Iterator[tuple[tuple[str, str], tuple[str, str], str]]:
    """Yield every pair of options that is refused, with a limited budget where neither names one, and the reason."""
    alone = {(part, option) for part, option, _ in refused_alone()}
    for first, second in combinations(PARTS, 2):
        for one, other in product(options(first), options(second)):
            reason = refusal({"budget": "uniform", first: one, second: other})
            if reason is not None and not alone & {(first, one), (second, other)}:
                yield (first, one), (second, other), reason
