"""Prompts packed piece by piece with one thing wrong each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from kvbench.cache.codecs.packed import PackedPayload
from kvbench.cache.layer import CacheLayer
from kvbench.cache.slots import Slots
from kvbench.cache.store import Store
from kvbench.kernels import attend
from kvbench.kernels.attend import Entries
from tests.mutants.core_mutant import Mutant
from tests.support import pieces

write, take_in, numbers, with_run = PackedPayload.write, Store.take_in, Slots._numbers, attend._with_run
read_piece, read_on, runs, visible_to = CacheLayer._read_piece, Store.read_on, Slots.runs, attend.visible_to


def over_what_waits(self: PackedPayload, start: int, entries: Tensor, position: Any = None) -> None:
    """Pack a piece without the entries that wait to be packed."""
    if self.exact.shape[2] > 0 and self.packed < start:
        self.packed = start
    write(self, start, entries, position)


def itself_packed(self: Store, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Have a piece find itself packed, too."""
    return read_on(self, query, key.half().to(key.dtype), value.half().to(value.dtype), scale)


def exact_for_longer(self: CacheLayer, *arguments: Any) -> Tensor:
    """Keep every piece beside what is packed of it."""
    kept = getattr(self, "_kept_pieces", [])
    self._kept_pieces = [*kept, arguments[1].clone(), arguments[2].clone()]  # type: ignore[attr-defined]
    return read_piece(self, *arguments)


def all_at_once(self: Slots, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Read all that is packed as one run."""
    return runs(self, max(1, self.filled))


def forgets_the_rest(before: Any, logits: Tensor, values: Tensor) -> Any:
    """Do not weigh earlier runs by how much larger the largest logit has become."""
    made = with_run(before, logits, values)
    if before is None:
        return made
    factor = (before.largest - made.largest).exp()
    more = (each * (1 - factor) for each in (before.total, before.summed))
    total, summed = (mine + rest for mine, rest in zip((made.total, made.summed), more, strict=True))
    return replace(made, total=total, summed=summed)


def padding_is_read(self: CacheLayer, region: Any, tokens: int) -> int:
    """Take padding for tokens."""
    return 0


def sees_ahead(position: Tensor, query_position: Tensor, window: int) -> Tensor:
    """Let a query see the token behind it."""
    return visible_to(position, query_position + (query_position >= 0), window)


def one_more_token(self: Store, key: Tensor, value: Tensor) -> None:
    """Have a piece begin one position late."""
    take_in(self, key.roll(1, dims=2), value)


def rough(self: Slots, entries: Tensor | Entries, start: int, stop: int) -> Tensor:
    """Read packed numbers a little wrong."""
    return numbers(self, entries, start, stop) * 1.01


MUTANTS = (
    Mutant(
        name="what waits to be packed is lost",
        patches=((PackedPayload, "write", over_what_waits),),
        killed_by=(partial(pieces.pieces_are_packed_as_a_whole, "kivi2"),),
        error=RuntimeError,  # groups are no longer whole
    ),
    Mutant(
        name="keys of another token",
        patches=((Store, "take_in", one_more_token),),
        killed_by=(
            partial(pieces.pieces_are_packed_as_a_whole, "quantization_8bit"),
            partial(pieces.a_whole_prompt_is_as_ever, "quantization_8bit"),
        ),
    ),
    Mutant(
        name="packed entries are read wrong",
        patches=((Slots, "_numbers", rough),),
        killed_by=(partial(pieces.a_piece_attends_to_what_is_packed, "kivi2"),),
    ),
    Mutant(
        name="a piece finds itself packed",
        patches=((Store, "read_on", itself_packed),),
        killed_by=(partial(pieces.a_piece_attends_to_what_is_packed, "quantization_8bit"),),
    ),
    Mutant(
        name="padding is packed",
        patches=((CacheLayer, "_padding_in", padding_is_read),),
        killed_by=(
            partial(pieces.rows_equal_rows_alone, "kivi2"),
            partial(pieces.pieces_are_packed_as_a_whole, "kivi2"),
        ),
        error=Exception,
    ),
    Mutant(
        name="pieces stay beside their codes",
        patches=((CacheLayer, "_read_piece", exact_for_longer),),
        killed_by=(partial(pieces.nothing_exact_is_kept, "quantization_8bit"),),
    ),
    Mutant(
        name="all that is packed becomes numbers at once",
        patches=((Slots, "runs", all_at_once),),
        killed_by=(partial(pieces.packed_entries_are_read_some_at_a_time, "kivi2"),),
    ),
    Mutant(
        name="runs are not weighed against each other",
        patches=((attend, "_with_run", forgets_the_rest),),
        killed_by=(
            partial(pieces.runs_are_attended_to_as_one, 0),
            partial(pieces.a_piece_attends_to_what_is_packed, "quantization_8bit"),
        ),
    ),
    Mutant(
        name="a query sees the token behind it",
        patches=((attend, "visible_to", sees_ahead),),
        killed_by=(partial(pieces.a_piece_attends_to_what_is_packed, "quantization_8bit"),),
    ),
)
