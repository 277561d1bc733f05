"""Methods that change the network; the generic oracles look at what they do to the cache."""

from __future__ import annotations

from dataclasses import replace

from tests.support.measured import folder
from tests.support.settings import Setting

_SMOOTH = Setting(overrides=(f"transform.maxima='{folder('smooth')}'",), has_budget=False, merges=True)

_GROUPED = Setting(overrides=("transform.num_groups=1",), has_budget=False)

_AS_SMOOTHQUANT = replace(_SMOOTH, like="smoothquant")

_CROSSED = Setting(has_budget=False, merges=True, moves_positions=True, forgets=True)

SETTINGS: dict[str, Setting] = {
    "arch_alt_10x": _CROSSED,
    "arch_alt_20x": replace(_CROSSED, like="arch_alt_10x"),
    "architecture_alteration": replace(_CROSSED, like="arch_alt_10x"),
    "cla": Setting(has_budget=False, turns_keys=True),
    "gqa": _GROUPED,
    "mla": Setting(has_budget=False),
    "mqa": replace(_GROUPED, like="gqa"),
    "no_cache": Setting(has_budget=False, merges=True, forgets=True, keeps=False),
    "smoothquant": _SMOOTH,
    "smoothquant_05": _AS_SMOOTHQUANT,
    "smoothquant_08": _AS_SMOOTHQUANT,
    "yoco": Setting(overrides=("transform.window=24",), has_budget=False, turns_keys=True),
}
