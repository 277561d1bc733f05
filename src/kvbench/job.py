"""What crosses the border to a measuring process and back; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from kvbench.engines.batcher import Batcher
from kvbench.engines.black_box import BlackBoxEngine
from kvbench.engines.eager import Eager
from kvbench.engines.schedulers import Scheduler, Unscheduled
from kvbench.measure.settings import Settings
from kvbench.models.spec import ModelSpec
from kvbench.quality import Quality
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.transform.base import Unchanged

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a measuring process is told.

    Args:
        spec: the model.
        strategy: the strategy asked for.
        baseline: what it is compared with, or None.
        engine: how tokens get made.
        scheduler: which of the requests that wait is next.
        workload: what is run.
        quality: what is asked.
        settings: how it is timed.
        seed: of random weights, windows and samples.
        matched: the model that the strategy runs on, where that is another one.
    """

    spec: ModelSpec
    strategy: CacheStrategy
    baseline: CacheStrategy | None
    engine: Eager | BlackBoxEngine | Batcher
    scheduler: Scheduler | Unscheduled
    workload: Any
    quality: Quality
    settings: Settings
    seed: int
    matched: ModelSpec | None = None

    @property
    def on_its_network(self) -> CacheStrategy:
        """The strategy as it runs: where it asks for another model, that one is loaded, and stays as it is."""
        return self.strategy if self.matched is None else replace(self.strategy, transform=Unchanged())


@dataclass(kw_only=True)
class Measured:
    """What a measuring process brings back: columns per arm, timed steps, requests as served, answers, texts."""

    rows: dict[str, Row]
    steps: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
