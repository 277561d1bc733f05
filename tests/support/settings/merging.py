"""Methods that make something of what leaves."""

from __future__ import annotations

from tests.support.settings import Setting

SETTINGS: dict[str, Setting] = {
    "fixed_size": Setting(merges=True, exact_when_full=False),  # a summary of nothing is one more column of zeros
    "fixed_size_offload": Setting(waits=True),
    "fixed_size_int8": Setting(like="fixed_size_offload"),
    "fixed_size_int4": Setting(like="fixed_size_offload"),
    "fixed_size_all": Setting(waits=True, merges=True, exact_when_full=False),
    "d2o": Setting(overrides=("selector.num_sink=2",), merges=True),
    "cam": Setting(overrides=("evicted.num_following=4",), merges=True),
    "lookm": Setting(merges=True),
    "kvmerger": Setting(overrides=("evicted.threshold=0.3",), merges=True),
    "zeromerge": Setting(overrides=("evicted.num_entries=3",), merges=True, exact_when_full=False),
}
