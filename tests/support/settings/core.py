"""Settings of the methods the core brings, with protected entries that fit the tests' short prompts."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "baseline": Setting(has_budget=False),
    "random_eviction": Setting(overrides=("selector.num_sink=2", "selector.num_recent=3")),
    "sliding_window": Setting(),
    "attention_sink": Setting(moves_positions=True),
    "h2o": Setting(),
    "tova": Setting(),
    "snapkv": Setting(overrides=("scorer.window=4", "scorer.kernel=3")),
    "knorm": Setting(overrides=("budget.skip_layers=[]",)),
}
