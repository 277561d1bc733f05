"""Layers that share with one thing wrong each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from kvbench.cache.borrowing import BorrowingLayer
from kvbench.cache.layer import CacheLayer
from kvbench.models.sharing import SharingAttention
from kvbench.models.sharing import sharing as modules_that_share
from kvbench.strategies.transform import cross_layer
from kvbench.strategies.transform.cross_layer import CrossLayer
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import sharing

forward = SharingAttention.forward


def of_this_pass_alone(self: CacheLayer, query: Tensor, scale: float) -> Tensor:
    """Attend to the newest entry and nothing before it."""
    slots = self.stores[0][1].slots
    value = slots.values.read(slots.filled)[:, :, -1:]
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


def kept(self: SharingAttention, *arguments: Any, **keywords: Any) -> Any:
    """Hand on for longer than the pass."""
    self.is_last = False
    return forward(self, *arguments, **keywords)


def of_the_model(self: CrossLayer, view: ModelView) -> ModelView:
    """Say that every layer stores."""
    return view


def counted_twice(self: BorrowingLayer) -> int:
    """Count what the donor holds again."""
    return self.donor.used_bytes()


def all_take(model: nn.Module, factor: int, windows: Sequence[int]) -> dict[str, nn.Module]:
    """Share between more layers than asked for."""
    return modules_that_share(model, factor + 1, windows)


def with_a_copy(self: BorrowingLayer) -> tuple[Tensor, ...]:
    """Hold what the donor holds."""
    return tuple(t.clone() for t in CacheLayer.tensors(self.donor))


MUTANTS = (
    Mutant(
        name="only the newest entry is read",
        patches=((CacheLayer, "look", of_this_pass_alone),),
        killed_by=(
            partial(sharing.shared_entries_are_those_of_the_donor, "llama_gqa"),
            partial(sharing.packed_entries_are_read_by_all, "llama_gqa"),
        ),
    ),
    Mutant(
        name="a pass is kept",
        patches=((SharingAttention, "forward", kept),),
        killed_by=(partial(sharing.what_is_handed_on_does_not_outlive_the_pass, "llama_gqa"),),
    ),
    Mutant(
        name="shapes are those of before",
        patches=((CrossLayer, "shapes", of_the_model),),
        killed_by=(partial(sharing.shapes_are_known_before, "llama_gqa"),),
    ),
    Mutant(
        name="used bytes are counted twice",
        patches=((BorrowingLayer, "used_bytes", counted_twice),),
        killed_by=(partial(sharing.bytes_fall_with_the_layers_that_store, "llama_gqa"),),
    ),
    Mutant(
        name="a second copy is held",
        patches=((BorrowingLayer, "tensors", with_a_copy),),
        killed_by=(partial(sharing.bytes_fall_with_the_layers_that_store, "llama_gqa"),),
    ),
    Mutant(
        name="groups are twice as large",
        patches=((cross_layer, "sharing", all_take),),
        killed_by=(partial(sharing.a_group_of_one_changes_nothing, "llama_gqa"),),
    ),
)
