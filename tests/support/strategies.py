"""The methods as their yaml files make them, and the same methods in the words of their papers."""

from __future__ import annotations

import copy
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from kvbench.configuration import build_group, compose, resolved
from kvbench.configuration.composing import parse
from kvbench.strategies.base import CacheStrategy
from tests.support import settings as package
from tests.support.reference import Rules
from tests.support.settings import Setting

METHODS = ("baseline", "random_eviction", "sliding_window", "attention_sink", "h2o", "tova", "snapkv", "knorm")
LIMITED = METHODS[1:]
EVERY_STEP = ("random_eviction", "sliding_window", "attention_sink", "h2o", "tova")

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


@functools.cache
def settings() -> dict[str, Setting]:
    """Return the setting of every method, from all modules of `tests.support.settings`."""
    found: dict[str, Setting] = {}
    for info in pkgutil.iter_modules(package.__path__):
        mine = importlib.import_module(f"{package.__name__}.{info.name}").SETTINGS
        assert not found.keys() & mine.keys(), f"set twice: {sorted(found.keys() & mine.keys())}"
        found |= mine
    return found


def strategy(name: str, *overrides: str, tokens: int | None = None) -> CacheStrategy:
    """Return a method from its yaml.

    Args:
        name: of the yaml in conf/strategy.
        overrides: as on the command line, without "strategy."; they come after those of the method's `Setting`.
        tokens: the budget in entries, where the method has one.
    """
    setting = settings()[name]
    limited = tokens is not None and setting.has_budget
    return composed(name, *setting.overrides, *(limit("tokens", tokens) if limited else ()), *overrides)


def every(period: int) -> tuple[str, str]:
    """Return the overrides that let so many entries leave at a time while decoding."""
    return ("strategy/trigger=every_k", f"trigger.period={period}")


def limit(unit: str, amount: object) -> tuple[str, str]:
    """Return the overrides that set a budget."""
    return (f"budget.unit={unit}", f"budget.amount={amount}")


@functools.cache
def composed(name: str, *overrides: str) -> CacheStrategy:
    """Return a method from its yaml with overrides and nothing else."""
    parts = tuple(text for text in overrides if "/" in text.split("=")[0])
    config = copy.deepcopy(_with_parts(name, *parts))
    for override in parse([f"strategy.{text}" for text in overrides if text not in parts]):
        OmegaConf.update(config, override.key_or_group, override.value())
    made = build_group(resolved(config)["strategy"], "strategy")
    assert isinstance(made, CacheStrategy)
    return made


@functools.cache
def _with_parts(name: str, *parts: str) -> DictConfig:
    """Return the configuration of a method with such parts, composed once whatever values are then set."""
    config = OmegaConf.masked_copy(compose([f"strategy={name}", *parts]), ["strategy"])
    OmegaConf.set_struct(config, True)
    return config


def rules(name: str, budget: int) -> Rules:
    """Return the rules of a method with so many entries; H2O keeps half of them for recent tokens."""
    recent = budget // 2 if name == "h2o" else RULES[name].recent
    return replace(RULES[name], budget=budget, recent=recent)
