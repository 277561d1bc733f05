"""Networks that stop half way with one thing wrong each."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from kvbench.cache.borrowing import BorrowingLayer
from kvbench.cache.kv_cache import KVCache
from kvbench.models import sharing
from kvbench.strategies.transform import cross_layer
from kvbench.strategies.transform.cross_layer import Sharing, Yoco
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import yoco

narrowed, cut = sharing._narrowed, sharing._go_on_with_asked
stops = partial(yoco.a_prompt_may_stop_half_way, "sdpa", 3)
stops_in_the_cache = partial(yoco.a_prompt_may_stop_half_way_in_the_cache, (24, 17), (), "dense")


def wider(mask: Tensor | None, query: Tensor, key: Tensor, window: int) -> Tensor:
    """Let layers see one token more."""
    return narrowed(mask, query, key, window + (window > 0))


def same_config(made: nn.Module, model: nn.Module, **said: object) -> nn.Module:
    """Say nothing of windows in the config."""
    return made


def not_stopped(model: nn.Module) -> None:
    """Go on with all tokens."""


def not_normed(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Make keys and values of what no norm has seen."""
    found = cut(layer, arguments, keywords)
    return found and (found[0], {**found[1], "whole": arguments[0]})


def as_asked(self: KVCache, asked: int) -> int:
    """Show layers no more than is asked for."""
    return asked


def half_a_window(self: Yoco, layers: int) -> tuple[int, list[int]]:
    """See less than is said, in every layer of the lower half."""
    return layers - layers // 2, [12] * (layers // 2) + [0] * (layers - layers // 2)


def counted_twice(self: BorrowingLayer) -> int:
    """Count what the donor holds again."""
    return self.donor.used_bytes()


def of_the_model(self: Sharing, view: ModelView) -> ModelView:
    """Say that every layer stores everything."""
    return view


MUTANTS = (
    Mutant(
        name="a window is wider",
        patches=((sharing, "_narrowed", wider),),
        killed_by=(yoco.equals_plain_loops,),
    ),
    Mutant(
        name="the config knows no windows",
        patches=((cross_layer, "with_config", same_config),),
        killed_by=(yoco.equals_plain_loops_with_the_stock_cache,),
    ),
    Mutant(
        name="all tokens go on",
        patches=((cross_layer, "let_stop", not_stopped),),
        killed_by=(stops, stops_in_the_cache),
    ),
    Mutant(
        name="keys and values are made of other rows",
        patches=((sharing, "_go_on_with_asked", not_normed),),
        killed_by=(stops, stops_in_the_cache),
    ),
    Mutant(
        name="a prompt is not shown",
        patches=((KVCache, "num_asking", as_asked),),
        killed_by=(
            partial(yoco.what_looks_at_a_prompt_is_shown_all_of_it, "h2o"),
            partial(yoco.what_looks_at_a_prompt_is_shown_all_of_it, *yoco.THINK),
        ),
    ),
    Mutant(
        name="windows are shorter",
        patches=((Yoco, "said", half_a_window),),
        killed_by=(yoco.a_window_above_the_length_is_no_window,),
    ),
    Mutant(
        name="used bytes are counted twice",
        patches=((BorrowingLayer, "used_bytes", counted_twice),),
        killed_by=(yoco.bytes_are_one_layers_and_windows,),
    ),
    Mutant(
        name="shapes are those of before",
        patches=((Sharing, "shapes", of_the_model),),
        killed_by=(yoco.shapes_are_known_before,),
    ),
)
