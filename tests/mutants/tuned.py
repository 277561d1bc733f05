"""Bits that are measured, or shared out, with one thing wrong each."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from kvbench.cache.codecs import bits as choosing
from kvbench.cache.codecs import tuned as codec
from kvbench.calibration import bits as measuring
from tests.mutants.core_mutant import Mutant
from tests.support import tuned

share, rounding, rounded, of_layers = (
    choosing.shared_out,
    measuring.rounding,
    measuring.rounded,
    choosing.bits_of_layers,
)


def greedy(keys: Any, values: Any, mean: float) -> Any:
    """Share bits out layer by layer."""
    return tuple(share([key], [value], mean)[0] for key, value in zip(keys, values, strict=True))


def sides_swapped(view: Any, where: str, along: str, mean: float) -> Any:
    """Give keys the bits of values."""
    return tuple(pair[::-1] for pair in of_layers(view, where, along, mean))


def last_first(view: Any, where: str, along: str, mean: float) -> Any:
    """Give each layer the bits of its mirror image."""
    return of_layers(view, where, along, mean)[::-1]


def always_by_tokens(view: Any, where: str, along: str, mean: float) -> Any:
    """Look at keys that share scales along tokens, whatever these do."""
    return of_layers(view, where, "tokens", mean)


def in_every_layer(layer: int, side: Any, bits: int) -> Any:
    """Round all layers at once."""
    return lambda at, *seen: rounding(at, side, bits)(at, *seen)


def both_sides(entries: Tensor, bits: int, along: Any) -> Tensor:
    """Round by channels whatever was asked."""
    return rounded(entries, bits, "channels")


def other_way_round(want: Tensor, got: Tensor) -> float:
    """Weigh by the predictions that moved."""
    return float((got.exp() * (got - want)).sum(dim=-1).mean())


_ERRORS = partial(tuned.errors_equal_plain_loops, "llama_gqa")

MUTANTS = (
    Mutant(
        name="each layer gets the mean",
        patches=((tuned, "shared_out", greedy), (choosing, "shared_out", greedy)),
        killed_by=(tuned.sharing_out_is_the_best_there_is,),
    ),
    Mutant(
        name="the last layers get most",
        patches=((tuned, "bits_of_layers", last_first),),
        killed_by=(tuned.tuned_bits_lose_less_than_the_same_everywhere,),
    ),
    Mutant(
        name="keys get the bits of values",
        patches=((codec, "bits_of_layers", sides_swapped),),
        killed_by=(tuned.layers_hold_their_own_bits,),
    ),
    Mutant(
        name="what keys share scales along is ignored",
        patches=((codec, "bits_of_layers", always_by_tokens),),
        killed_by=(tuned.layers_hold_their_own_bits,),
    ),
    Mutant(name="all layers are rounded", patches=((measuring, "rounding", in_every_layer),), killed_by=(_ERRORS,)),
    Mutant(name="keys are rounded by channels", patches=((measuring, "rounded", both_sides),), killed_by=(_ERRORS,)),
    Mutant(
        name="the divergence is taken the other way round",
        patches=((measuring, "divergence", other_way_round),),
        killed_by=(_ERRORS,),
    ),
)
