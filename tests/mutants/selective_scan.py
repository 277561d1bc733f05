"""The recurrence in C++ with one line of its source changed."""

from __future__ import annotations

from functools import partial

from kvbench.kernels import selective_scan
from tests.mutants.native_rows import recompiled
from tests.support import scans

AT_ONCE = partial(scans.equals_a_loop, 2, 7)
_mutant = partial(recompiled, selective_scan, "SOURCE", "_library")


MUTANTS = (
    _mutant(
        "a gradient is of the state after", "kept_back * states[t][n][i]", "kept_back * states[t + 1][n][i]", AT_ONCE
    ),
    _mutant("gradients do not fall with the state", "back[n][i] = kept_back;", "back[n][i] = whole;", AT_ONCE),
    _mutant("channels fall at the first ones' rates", "(at + i) * STATES", "i * STATES", AT_ONCE),
    _mutant(
        "every piece starts from nothing",
        "std::memcpy(h[n], s.start + (row * STATES + n) * s.channels + at, sizeof(Lanes))",
        "std::memset(h[n], 0, sizeof(Lanes))",
        partial(scans.goes_on_from_a_state, (3, 4)),
    ),
    _mutant(
        "small powers are anything",
        "x = x < -87.0f ? -87.0f : x;",
        "",
        scans.large_rates_forget_all,
    ),
)
