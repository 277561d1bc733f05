"""Methods that read less than they hold."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "quest": Setting(
        overrides=(
            "reader.size=3",
            "reader.unit=tokens",
            "reader.amount=9",
            "reader.least_pages=1",
            "reader.skip_layers=[]",
        ),
        has_budget=False,
        merges=True,  # what is held is not what is read
    ),
    "infllm": Setting(
        overrides=(
            "evicted.first=2",
            "reader.size=3",
            "reader.unit=tokens",
            "reader.amount=6",
            "reader.representatives=2",
        ),
        merges=True,
        waits=True,  # for the blocks a query has chosen
    ),
    "tiered": Setting(
        overrides=(
            "trigger.period=3",
            "selector.num_sink=1",
            "reader.size=3",
            "reader.unit=tokens",
            "reader.amount=6",
            "reader.least_pages=1",
        ),
        merges=True,
        waits=True,  # for the pages a query has chosen
    ),
    "shadowkv": Setting(
        overrides=(
            "selector.num_recent=5",
            "reader.size=3",
            "reader.amount=6",
            "evicted.rank=12",
        ),
        merges=True,
        waits=True,
    ),
}
