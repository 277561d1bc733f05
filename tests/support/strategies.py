"""The methods as their yaml files make them, and the same methods in the words of their sheets."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from kvbench.configuration import build_group, compose, resolved
from kvbench.strategies.base import CacheStrategy
from tests.support.reference import Rules

METHODS = ("baseline", "random_eviction", "sliding_window", "attention_sink", "h2o", "tova", "snapkv", "knorm")
LIMITED = METHODS[1:]
EVERY_STEP = ("random_eviction", "sliding_window", "attention_sink", "h2o", "tova")

SMALL: Mapping[str, tuple[str, ...]] = {  # protected entries that fit the tests' short prompts
    "random_eviction": ("selector.num_sink=2", "selector.num_recent=3"),
    "snapkv": ("scorer.window=4", "scorer.kernel=3"),
    "knorm": ("budget.skip_layers=[]",),
}

RULES: Mapping[str, Rules] = {
    "baseline": Rules(score="none"),
    "random_eviction": Rules(score="lot", sinks=2, recent=3),
    "sliding_window": Rules(score="recency"),
    "attention_sink": Rules(score="recency", sinks=4, by_rank=True),
    "h2o": Rules(score="mass"),
    "tova": Rules(score="last"),
    "snapkv": Rules(score="window", every_step=False, window=4, kernel=3, recent=4),
    "knorm": Rules(score="norm", every_step=False),
}


def strategy(name: str, *overrides: str, tokens: int | None = None) -> CacheStrategy:
    """Return a method from its yaml.

    Args:
        name: of the yaml in conf/strategy.
        overrides: as on the command line, without "strategy."; they come after those of `SMALL`.
        tokens: the budget in entries, where the method has one.
    """
    budget = () if tokens is None or name == "baseline" else ("budget.unit=tokens", f"budget.amount={tokens}")
    return composed(name, *SMALL.get(name, ()), *budget, *overrides)


@functools.cache
def composed(name: str, *overrides: str) -> CacheStrategy:
    """Return a method from its yaml with overrides and nothing else."""
    full = [text if "/" in text.split("=")[0] else f"strategy.{text}" for text in overrides]
    made = build_group(resolved(compose([f"strategy={name}", *full]))["strategy"], "strategy")
    assert isinstance(made, CacheStrategy)
    return made


def rules(name: str, budget: int) -> Rules:
    """Return the rules of a method with so many entries; H2O keeps half of them for recent tokens."""
    recent = budget // 2 if name == "h2o" else RULES[name].recent
    return replace(RULES[name], budget=budget, recent=recent)
