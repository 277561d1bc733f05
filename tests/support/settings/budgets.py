"""Settings of the methods that differ in how much layers and heads keep."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "pyramidkv": Setting(overrides=("scorer.window=4", "scorer.kernel=3")),
    "adakv": Setting(overrides=("scorer.window=4", "scorer.kernel=3")),
    "cake": Setting(overrides=("scorer.window=4", "scorer.kernel=3")),
    "simlayerkv": Setting(
        overrides=("selector.num_sink=2", "budget.queries=4", "budget.threshold=0.42"), data_dependent=True
    ),
    "defensivekv": Setting(overrides=("scorer.window=4", "scorer.kernel=3")),
}
