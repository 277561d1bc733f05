"""Shared directions and their ranks with one thing wrong each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import eigen as rules
from kvbench.cache.codecs.moments import Moments, blocks, main_directions
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import eigen

bases = rules._bases.__wrapped__
moments, of_one_share = rules._moments, rules.of_one_share


def of_keys_alone(found: Moments, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Leave the queries out."""
    for at, both in enumerate(moments(found, sizes)):
        yield blocks(found.keys[at // 2], sizes[at]) if at % 2 == 0 else both


def least_first(given: Tensor) -> tuple[Tensor, Tensor]:
    """Take the directions along which least lies."""
    squares, directions = main_directions(given)
    return squares, directions.flip(2)


def longer(given: Tensor) -> tuple[Tensor, Tensor]:
    """Let directions be longer than 1."""
    squares, directions = main_directions(given)
    return squares, 1.01 * directions


def all_alike(spectra: Sequence[Tensor], total: int) -> list[int]:
    """Give every side the same."""
    return of_one_share([torch.ones_like(each) for each in spectra], total)


def of_the_mean_head(spectra: Sequence[Tensor], total: int) -> list[int]:
    """Let a side keep what its heads need on average."""
    return of_one_share([each.mean(dim=0, keepdim=True) for each in spectra], total)


def one_more(spectra: Sequence[Tensor], total: int) -> list[int]:
    """Keep a direction more than is asked for."""
    return of_one_share(spectra, total + 1)


def whole(view: ModelView, rule: Any) -> Any:
    """Hold every direction."""
    return bases(view, replace(rule, kept=1.0))


_STACKED = partial(eigen.directions_are_those_of_stacked_rows, "llama_gqa")
_PLAIN = (rules, "_bases", bases)  # without what was found before

MUTANTS = (
    Mutant(
        name="queries are left out",
        patches=((rules, "_moments", of_keys_alone), _PLAIN),
        killed_by=(_STACKED, partial(eigen.directions_are_those_of_stacked_rows, "gpt2"), eigen.queries_help),
    ),
    Mutant(
        name="the least directions are kept",
        patches=((rules, "main_directions", least_first), _PLAIN),
        killed_by=(_STACKED,),
    ),
    Mutant(
        name="directions are too long",
        patches=((rules, "main_directions", longer), _PLAIN),
        killed_by=(_STACKED,),
    ),
    Mutant(
        name="all sides keep the same",
        patches=((rules, "of_one_share", all_alike), _PLAIN),
        killed_by=(eigen.ranks_are_those_of_one_share,),
    ),
    Mutant(
        name="a head may keep less than its share",
        patches=((rules, "of_one_share", of_the_mean_head), _PLAIN),
        killed_by=(eigen.ranks_are_those_of_one_share,),
    ),
    Mutant(
        name="a direction more is kept",
        patches=((rules, "of_one_share", one_more), _PLAIN),
        killed_by=(eigen.ranks_are_those_of_one_share,),
    ),
    Mutant(
        name="latents have every direction",
        patches=((rules, "_bases", whole),),
        killed_by=(eigen.latents_take_what_their_ranks_say,),
    ),
)
