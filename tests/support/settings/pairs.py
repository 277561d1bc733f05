"""Methods that keep two layers together."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "minicache": Setting(overrides=("layout.start=0", "layout.retained_share=0.15"), has_budget=False, merges=True),
    "paged": Setting(overrides=("layout.page_tokens=4",), has_budget=False),
    "scheduling_fcfs": Setting(overrides=("layout.page_tokens=4",), has_budget=False, like="paged"),
    "scheduling_prefix": Setting(overrides=("layout.page_tokens=4",), has_budget=False, like="paged"),
    "scheduling_lpm": Setting(overrides=("layout.page_tokens=4",), has_budget=False, like="paged"),
    "scheduling_batchllm": Setting(overrides=("layout.page_tokens=4",), has_budget=False, like="paged"),
    "prefix_cache": Setting(overrides=("layout.page_tokens=4",), has_budget=False, like="paged"),
}
