"""Attention that is counted as lost, or is not, by mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvbench import tracing
from kvbench.cache import watched
from kvbench.kernels.attend import attend_one
from tests.mutants.core_mutant import Mutant

_is_held, attention_lost = tracing._is_held, tracing.attention_lost


def heads_dealt_out(query: Tensor, *args: Any, **keywords: Any) -> tuple[Tensor, list[Tensor] | None]:
    """Deal query heads out to KV heads in turn, where neighbours share one."""
    out, weights = attend_one(query, *args, **keywords)
    assert weights is not None
    return out, [part.flatten(1, 2).unflatten(1, (part.shape[2], part.shape[1])).transpose(1, 2) for part in weights]


def one_position_further(positions: Tensor, newest: int) -> Tensor:
    """Take each position held for the one behind it."""
    return _is_held(torch.where(positions < 0, positions, (positions + 1).clamp(max=newest)), newest)


def without_the_newest(positions: Tensor, newest: int) -> Tensor:
    """Lose the attention a token pays to itself."""
    held = _is_held(positions, newest)
    held[..., -1] = (positions == newest).any(dim=-1)
    return held


def held_afterwards(full: Any, ids: Tensor, held: Sequence[Sequence[Tensor]]) -> Tensor:
    """Take what was held when a token had been read, and something had left for it."""
    return attention_lost(full, ids, [*held[1:], held[-1]])


def without_the_last_step(full: Any, ids: Tensor, held: Sequence[Sequence[Tensor]]) -> Tensor:
    """Leave the last token out."""
    return attention_lost(full, ids[:, :-1], held[:-1])


def mutants(by_mask: Callable[[], None], by_heads: Callable[[], None]) -> list[Mutant]:
    """Return them all.

    Args:
        by_mask: a check in which all heads hold the same.
        by_heads: a check in which they do not.
    """
    broken: list[tuple[object, str, Callable[..., object], Callable[[], None]]] = [
        (watched, "attend_one", heads_dealt_out, by_heads),
        (tracing, "_is_held", one_position_further, by_mask),
        (tracing, "_is_held", without_the_newest, by_mask),
        (tracing, "attention_lost", held_afterwards, by_mask),
        (tracing, "attention_lost", without_the_last_step, by_mask),
    ]
    return [
        Mutant(name=wrong.__name__, patches=((home, name, wrong),), killed_by=(check,))
        for home, name, wrong, check in broken
    ]
