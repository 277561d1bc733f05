"""Methods whose entries lie elsewhere between steps."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "offload": Setting(has_budget=False),
    "flexgen": Setting(has_budget=False, overrides=("placement.host=0.4", "placement.disk=0.2")),
    "disk": Setting(has_budget=False, like="offload"),
    "kvpr": Setting(has_budget=False, any_loop=False),
}
