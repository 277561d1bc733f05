"""Counts of a cache's bytes, and of its groups, that get one thing wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.engines import storages as counting
from kvbench.strategies import black_box
from tests.mutants.core_mutant import Mutant
from tests.support import black_boxes

storages = counting.storages


def as_they_say(thing: Any) -> dict[int, int]:
    """Believe what a tensor says of its size."""
    return {id(t): t.numel() * t.element_size() for t in _tensors(thing)}


def each_view(thing: Any) -> dict[int, int]:
    """Count a storage as often as it is met."""
    return {id(t): storages(t).popitem()[1] for t in _tensors(thing)}


def without_dictionaries(thing: Any) -> dict[int, int]:
    """Overlook what a dictionary holds."""
    beside = [part for value in vars(thing).values() if isinstance(value, tuple) for part in value]
    hidden = {address for part in beside if isinstance(part, dict) for address in storages(part)}
    return {address: size for address, size in storages(thing).items() if address not in hidden}


def wherever_it_lies(thing: Any, device: torch.device) -> int:
    """Count on the host what lies on a device."""
    return sum(storages(thing).values())


def _tensors(thing: Any) -> list[Tensor]:
    if isinstance(thing, Tensor):
        return [thing]
    parts = thing if isinstance(thing, list) else [v for v in vars(thing).values() if v is not thing]
    return [
        tensor for part in parts if isinstance(part, Tensor | list | black_boxes.Layer) for tensor in _tensors(part)
    ]


def any_numbers(shape: tuple[int, ...], axis: int, bits: int, group: int) -> bool:
    """Say that everything fits."""
    return True


ANY = {name: replace(package, fits=any_numbers) for name, package in black_box._PACKAGES.items()}


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="a packed tensor is believed",
        patches=((counting, "storages", as_they_say),),
        killed_by=(black_boxes.parts_of_a_packed_tensor_are_counted,),
    ),
    Mutant(
        name="views are counted apart",
        patches=((counting, "storages", each_view),),
        killed_by=(black_boxes.a_storage_is_counted_once_and_whole,),
    ),
    Mutant(
        name="scales in a dictionary are overlooked",
        patches=((counting, "storages", without_dictionaries),),
        killed_by=(black_boxes.what_lies_beside_codes_is_counted,),
    ),
    Mutant(
        name="everything lies on the host",
        patches=((counting, "host_bytes", wherever_it_lies),),
        killed_by=(black_boxes.what_lies_on_the_host_is_counted_there,),
    ),
    Mutant(
        name="every length fits",
        patches=((black_box, "_PACKAGES", ANY),),
        killed_by=(black_boxes.lengths_fit_as_worked_out_by_hand,),
    ),
)
