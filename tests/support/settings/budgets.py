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
    "squeezeattention": Setting(any_loop=False),
    "kvzip": Setting(
        overrides=("scorer.chunk=10", "scorer.lead=3", "scorer.num_sink=2", "selector.num_sink=2"), any_loop=False
    ),
    "defensivekv": Setting(overrides=("scorer.window=4", "scorer.kernel=3")),
}
