"""Pools that are too small."""

from __future__ import annotations

from math import ceil

from kvbench.engines import vllm as engine
from kvbench.types import ModelView, RunShape
from tests.mutants.core_mutant import Mutant
from tests.support.vllm import pages_are_counted_by_hand

pool = engine.pool


def without_the_empty_page(view: ModelView, run: RunShape, block: int) -> tuple[int, int]:
    """Forget the page that vLLM keeps empty."""
    pages, size = pool(view, run, block)
    return pages - 1, size


def as_if_layers_were_alike(view: ModelView, run: RunShape, block: int) -> tuple[int, int]:
    """Give layers that see a window the pages of those that see all."""
    pages = run.batch_size * ceil((run.prompt_tokens + (run.new_tokens or 1)) / block)
    return pages + 1, pool(view, run, block)[1]


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="no empty page",
        patches=((engine, "pool", without_the_empty_page),),
        killed_by=(pages_are_counted_by_hand,),
    ),
    Mutant(
        name="one group of pages",
        patches=((engine, "pool", as_if_layers_were_alike),),
        killed_by=(pages_are_counted_by_hand,),
    ),
)
