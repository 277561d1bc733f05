"""Methods that count, add noise or draw lots."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "scissorhands": Setting(overrides=("trigger.period=4", "scorer.history=10", "selector.num_recent=2")),
    "keyformer": Setting(overrides=("trigger.period=4", "scorer.tau_steps=8")),
    "nacl": Setting(overrides=("scorer.share=0.2", "selector.num_sink=2", "selector.recent_share=0.2")),
}
