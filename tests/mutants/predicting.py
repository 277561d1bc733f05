"""Work of measured steps that is counted wrongly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvbench import predicting
from kvbench.columns import weights_read
from kvbench.planning.expected import Work

REAL = predicting.work_of


def of_weights_alone(*arguments: Any) -> Work:
    """Read no cache."""
    return replace(REAL(*arguments), read_bytes=weights_read(arguments[0].model))


def always_ahead(*arguments: Any) -> Work:
    """Let every layer come while another one computes."""
    return replace(REAL(*arguments), overlaps=True)


def half_of_what_came(*arguments: Any) -> Work:
    """Count keys or values alone."""
    found = REAL(*arguments)
    return replace(found, up_bytes=found.up_bytes / 2)


def of_all_steps(arm: Any, cache: Any, run: Any, before: Any, steps: int, launches: int) -> Work:
    """Take what moved in all steps for that of one."""
    return REAL(arm, cache, run, before, 1, launches)
