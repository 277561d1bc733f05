"""The environment variables of the original fixed-size cache, as defaults of strategies."""

from __future__ import annotations

import functools

import pytest
from omegaconf import DictConfig

from kvbench.configuration import check, compose

VARIABLES = {
    "FSDC_KV_CACHE_SIZE": ("2048", "budget.amount", 2048.0),
    "FSDC_INCLUDE_SKIPPED": ("True", "evicted.summary", True),
    "FSDC_TRUNCATION_STRATEGY": ("hybrid", "selector.truncation", "hybrid"),
    "FSDC_HYBRID_SPLIT_RATIO": ("0.7", "selector.split", 0.7),
    "FSDC_OFFLOAD_SIZE": ("32768", "evicted.offload_size", 32768),
    "FSDC_USE_MMAP": ("True", "evicted.mmap", True),
    "FSDC_AUTO_RESTORE": ("False", "evicted.restore_every", 0),
    "FSDC_TOKEN_IMPORTANCE_WINDOW": ("50", "scorer.importance_window", 50),
    "FSDC_IMPORTANCE_THRESHOLD": ("0.2", "evicted.importance_threshold", 0.2),
    "FSDC_QUANTIZE": ("True", "evicted.bits", 8),
    "FSDC_WORKER_THREADS": ("3", "evicted.worker_threads", 3),
    "FSDC_PARALLEL_PROCESSING": ("False", "evicted.worker_threads", 0),
}
UNSET = {
    "budget.amount": 0.25,
    "budget.unit": "ratio",
    "evicted.summary": False,
    "selector.truncation": "attention",
    "selector.split": 0.5,
    "evicted.offload_size": 16384,
    "evicted.mmap": False,
    "evicted.restore_every": 1,
    "scorer.importance_window": 100,
    "evicted.importance_threshold": 0.1,
    "evicted.bits": 16,
    "evicted.worker_threads": 4,
}


PARTS = ("FSDC_INCLUDE_SKIPPED", "FSDC_OFFLOAD_TO_CPU")  # these choose parts, all others values


@functools.cache
def _composed(strategy: str, overrides: tuple[str, ...], *parts: str | None) -> DictConfig:
    return compose([f"strategy={strategy}", *(f"strategy.{text}" for text in overrides)])


def made_with(environment: dict[str, str], *overrides: str, name: str = "fixed_size_offload") -> dict[str, object]:
    """Return the settings of a strategy composed in an environment."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in [*VARIABLES, *PARTS, "FSDC_QUANTIZATION_BITS"]:
            patch.delenv(variable, raising=False)
        for variable, value in environment.items():
            patch.setenv(variable, value)
        made = check(_composed(name, overrides, *map(environment.get, PARTS))).strategy
    parts = {part: getattr(made, part) for part in ("budget", "evicted", "selector", "scorer")}
    found: dict[str, object] = {part: type(value).__name__ for part, value in parts.items()}
    return found | {f"{part}.{key}": value for part, each in parts.items() for key, value in vars(each).items()}


def the_environment_gives_way() -> None:
    """Each variable changes its setting and no other; a strategy's yaml wins over it, the command line over both."""
    assert UNSET.items() <= made_with({}).items()
    for variable, (value, key, want) in VARIABLES.items():
        found = made_with({variable: value})
        also = {"budget.unit": "tokens"} if variable == "FSDC_KV_CACHE_SIZE" else {}
        assert {**UNSET, **also, key: want}.items() <= found.items(), variable
    bits = {"FSDC_QUANTIZE": "True", "FSDC_QUANTIZATION_BITS": "4"}
    assert made_with(bits)["evicted.bits"] == 4
    assert made_with({"FSDC_QUANTIZATION_BITS": "4"})["evicted.bits"] == 16
    assert made_with(bits, name="fixed_size_int8")["evicted.bits"] == 8
    assert made_with(bits, "evicted.bits=16", name="fixed_size_int8")["evicted.bits"] == 16
    assert made_with({"FSDC_WORKER_THREADS": "3"}, "evicted.worker_threads=1")["evicted.worker_threads"] == 1
    parts = {"": "Summary", "FSDC_INCLUDE_SKIPPED": "Drop", "FSDC_OFFLOAD_TO_CPU": "Offloaded"}
    values = {"FSDC_INCLUDE_SKIPPED": "False", "FSDC_OFFLOAD_TO_CPU": "True"}
    for variable, part in parts.items():
        given = {variable: values[variable]} if variable else {}
        assert made_with(given, name="fixed_size")["evicted"] == part
    with pytest.raises(ValueError, match=r"strategy\.evicted\.bits.*environment.*true or false.*'yes'"):
        made_with({"FSDC_QUANTIZE": "yes"})
