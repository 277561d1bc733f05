"""What must hold of attention tile by tile."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvbench.kernels.attend import tiled
from kvbench.kernels.attend.tiled import Tiling

QUERIES, KEYS, DIM = 37, 45, 8


def _given(queries: int = QUERIES, keys: int = KEYS) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    lengths = (queries, keys, keys)
    query, key, value = (torch.randn(2, 3, n, DIM, generator=random, dtype=torch.float64) for n in lengths)
    return 4 * query, key, value


def _whole(query: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return the output and the log of the sum, over all keys at once."""
    logits = query @ keys.mT / math.sqrt(DIM)
    if is_causal:
        hidden = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool).triu(keys.shape[2] - query.shape[2] + 1)
        logits = logits.masked_fill(hidden, -math.inf)
    return logits.softmax(dim=-1) @ values, logits.logsumexp(dim=-1)


def any_tile_gives_the_softmax(tiling: Tiling) -> None:
    """Whatever the tiles, which lengths are no multiples of, the output and the sums are those of all keys at once."""
    given = _given()
    out, log_sum, _ = tiled.attend_tiled(*given, DIM**-0.5, tiling)
    want = _whole(*given, is_causal=tiling.is_causal)
    assert (out - want[0]).abs().max() < 1e-12
    assert (log_sum - want[1]).abs().max() < 1e-12


def bytes_counted_are_the_formula(tiling: Tiling) -> None:
    """What was counted on the way is the formula, which a plain loop over tiles gives as well."""
    crossed = tiled.attend_tiled(*_given(), DIM**-0.5, tiling)[2]
    pairs = 0
    for first in range(0, QUERIES, tiling.rows):
        last = min(first + tiling.rows, QUERIES) - 1 + KEYS - QUERIES  # the last key that the tile's last query sees
        for start in range(0, KEYS, tiling.columns):
            if not tiling.is_causal or start <= last:
                pairs += min(tiling.columns, KEYS - start)
    one = 8 * DIM * (2 * QUERIES + 2 * pairs) + 4 * QUERIES
    assert crossed == 2 * 3 * one == 2 * 3 * tiling.crossing(QUERIES, KEYS, DIM, 8)


def a_query_that_sees_nothing_says_nothing() -> None:
    """Where there are more queries than keys the first ones see none: 0, and the log of nothing."""
    tiling = Tiling(rows=4, columns=4, is_causal=True)
    query, keys, values = _given(queries=9, keys=4)
    out, log_sum, _ = tiled.attend_tiled(query, keys, values, DIM**-0.5, tiling)
    assert (out[:, :, :5] == 0).all()
    assert (log_sum[:, :, :5] == -math.inf).all()
    want = _whole(query, keys, values, is_causal=True)
    assert (out[:, :, 5:] - want[0][:, :, 5:]).abs().max() < 1e-12
    assert (log_sum[:, :, 5:] - want[1][:, :, 5:]).abs().max() < 1e-12
