"""Methods that are a scorer of their own: in pieces, a key, a value or a chunk is what it is in the whole."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "keydiff": Setting(),
    "lagkv": Setting(overrides=("selector.num_sink=2", "scorer.lag=4")),
    "expected_attention": Setting(overrides=("selector.num_sink=2", "scorer.num_future=16")),
    "criticalkv": Setting(overrides=("scorer.base.window=4", "scorer.base.kernel=3")),
    "chunkkv": Setting(overrides=("scorer.base.window=4", "scorer.base.kernel=3", "scorer.length=4")),
    "rkv": Setting(overrides=("trigger.period=4", "scorer.window=3", "scorer.kernel=3")),
    "finch": Setting(overrides=("scorer.window=4",), moves_positions=True, turns_keys=True),
}
