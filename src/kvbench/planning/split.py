"""How many of a layer's tokens stay on the device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from math import floor

from kvbench.planning.policy import Policy, Setup, held
from kvbench.planning.recompute import Choice

SAFETY = 0.9  # of the memory; the rest is for what an allocator loses and for what nobody counted


def split_by_ratio(tokens: int, ratio: float) -> Choice:
    """Return the whole tokens in a share of a layer's.

    Args:
        tokens: of the layer.
        ratio: share that stays on the device, 0 to 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the share that stays on the device must be between 0 and 1; got {ratio}.")
    kept = floor(Fraction(str(ratio)) * tokens)  # 0.29 of 100 is 29, which floating point misses
    return Choice(value=kept, reason=f"{ratio:g} of {tokens:,} tokens")


def split_to_fit(tokens: int, needed: Callable[[int], float], memory_bytes: float) -> Choice:
    """Return the most tokens of a layer that fit on the device; a tenth of its memory is left.

    Args:
        tokens: that there are.
        needed: bytes on the device with so many of them there, which grow with each; only all of them may need less,
            as nothing has to come then.
        memory_bytes: of the device.
    """
    room = SAFETY * memory_bytes
    if needed(tokens) <= room:
        return Choice(value=tokens, reason=f"all {tokens:,} tokens fit in {SAFETY:g} of {memory_bytes:,.0f} bytes")
    kept = bisect_right(range(tokens), room, key=needed) - 1
    if kept < 0:
        return Choice(
            value=0,
            reason=f"{needed(0):,.0f} bytes are needed without any token, {SAFETY:g} of {memory_bytes:,.0f} are there",
        )
    return Choice(value=kept, reason=f"{kept:,} of {tokens:,} tokens fit in {SAFETY:g} of {memory_bytes:,.0f} bytes")


def split_by_memory(
    tokens: int, setup: Setup, *, bits: int, batch_size: int, memory_bytes: float, recompute: bool
) -> Choice:
    """Return the most tokens of a layer that fit on the device, the others being in the host's memory.

    Weights, the activations of a pass, the staging of what comes and the scales of packed numbers are counted, for all
    layers, and a tenth of the memory is left.

    Args:
        tokens: of a layer.
        setup: the network, and how its cache is kept.
        bits: per number of keys and values.
        batch_size: rows at once.
        memory_bytes: of the device.
        recompute: whether the others are computed again, rather than moved.
    """

    def needed(kept: int) -> float:
        away = tokens - kept
        again = away if recompute else 0
        return held(
            Policy(device=kept, host=away, disk=0, recompute=again, bits=bits, batch_size=batch_size), setup
        ).device

    return split_to_fit(tokens, needed, memory_bytes)
