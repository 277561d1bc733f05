"""Tables, and what is written by them, with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import codebooks as books
from kvbench.cache.codecs import kvquant as codec
from kvbench.cache.codecs import nonuniform
from kvbench.cache.codecs.kvquant import CodebookFormat, CodebookPayload, KVQuant
from kvbench.cache.codecs.sides import LayerSides
from kvbench.cache.store import Store
from kvbench.calibration import codebooks as calibration
from kvbench.calibration.codebooks import Seen
from kvbench.kernels.packed import Rows
from tests.mutants.core_mutant import Mutant
from tests.support import codebooks, kvquant

encoded, entries_of, coded, write, put = (
    CodebookPayload._encoded,
    CodebookPayload.entries,
    CodebookPayload._coded,
    CodebookPayload.write,
    codec._put,
)
allocated_bytes, of_each, nearest = CodebookFormat.allocated_bytes, nonuniform.of_each, nonuniform.nearest
of_channels, seen, lloyd = calibration.of_channels, calibration.seen, calibration._lloyd


def next_level(numbers: Tensor, levels: Tensor) -> Tensor:
    """Take the level above the nearest one."""
    return (nearest(numbers, levels) + 1).clamp(max=len(levels) - 1)


def still_rotated(self: CodebookPayload, entries: Tensor, position: Any) -> dict[str, Tensor]:
    """Pack keys with their rotation."""
    return encoded(self, entries, 0)


def not_rotated(self: CodebookPayload, count: int, position: Tensor) -> Any:
    """Leave keys as they are packed."""
    return replace(coded(self, count, position), turned=None)


def least_outliers(tokens: Tensor, outliers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the numbers that are nearest to the median."""
    _, scale, low = of_each(tokens, outliers)
    median = tokens.median(dim=-1, keepdim=True).values
    return (median - tokens).abs().topk(outliers, dim=-1, largest=False).indices, scale, low


def outliers_set_the_scale(tokens: Tensor, outliers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale by all numbers, outliers as well."""
    channel, _, _ = of_each(tokens, outliers)
    ends = tokens.amin(dim=-1, keepdim=True), tokens.amax(dim=-1, keepdim=True)
    return channel, *nonuniform.between(*ends)


def no_outliers(self: CodebookPayload, count: int, position: Tensor) -> Any:
    """Lose the outliers."""
    return replace(coded(self, count, position), outliers=None)


def one_channel_on(self: CodebookPayload, entries: Tensor, position: Any) -> dict[str, Tensor]:
    """Put outliers beside their place."""
    made = encoded(self, entries, position)
    return {**made, "channel": (made["channel"] + 1) % (entries.shape[1] * entries.shape[3])}


def first_ones_rounded(self: CodebookPayload, start: int, entries: Tensor, position: Any = None) -> None:
    """Keep first tokens in float16."""
    write(self, start, entries.half().to(entries.dtype) if start == 0 else entries, position)


def scales_follow(self: CodebookPayload, start: int, entries: Tensor, position: Any = None) -> None:
    """Write a token over the one before, too."""
    write(self, start, entries, position)
    if start > 0 and entries.shape[2] == 1:
        write(self, start - 1, entries, position)


def everywhere(rows: Tensor, slot: Tensor, new: Tensor, wanted: Tensor) -> None:
    """Write where nothing is to be written."""
    put(rows, slot, new, torch.ones_like(wanted))


def free_channels(self: CodebookFormat, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
    """Forget that an outlier has a place."""
    packed = max(0, capacity - self.rule.num_sink)
    return allocated_bytes(self, heads, dim, capacity, dtype) - packed * 2 * self.outliers(heads * dim)


def first_ones_last(self: CodebookPayload, stop: int, position: Tensor) -> Rows:
    """Read the first tokens behind the others."""
    rows = entries_of(self, stop, position)
    return Rows(list(rows.parts)[::-1], rows.dtype)


def dense_logits(self: Rows, rows: Tensor) -> Tensor:
    """Unpack all keys at once."""
    whole = self.numbers(0, sum(self.lengths), rows.dtype)
    return rows @ whole.transpose(-1, -2)


def one_late(self: CodebookPayload, stop: int, position: Tensor) -> Rows:
    """Rotate keys to where their neighbours are."""
    return entries_of(self, stop, position + 1)


of_layer = KVQuant.of_layer


def together(self: KVQuant, view: Any, layer: int) -> LayerSides:
    """Store rows of different lengths together."""
    return replace(of_layer(self, view, layer), num_sink=0)


def without_positions(self: Store) -> None:
    """Write sinks that were turned without saying where."""
    assert self._sinks is not None
    self.slots.keys.write(0, self._sinks.by(self._dropped()))


def no_tables(self: KVQuant, view: Any, layer: int) -> LayerSides:
    """Forget the tables."""
    return replace(of_layer(self, view, layer), fixed_bytes=0)


def coarse_even(view: Any, where: str, bits: int) -> Any:
    """Take tables of 2 bits where there is no file."""
    return TABLES(view, where, 2 if where == "/nowhere" else bits)


TABLES = books.tables


def all_alike(keys: Seen, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Count all keys alike."""
    numbers, costs = of_channels(keys, lower, upper)
    return numbers, torch.ones_like(costs)


of_tokens = calibration.of_tokens


def values_alike(values: Seen) -> tuple[Tensor, Tensor]:
    """Count all values alike."""
    numbers, costs = of_tokens(values)
    return numbers, torch.ones_like(costs)


def rotated_gradients(*given: Any) -> list[tuple[Seen, Seen]]:
    """Mix up the gradients of keys and values."""
    return [
        (replace(keys, gradient=values.gradient), replace(values, gradient=keys.gradient))
        for keys, values in seen(*given)
    ]


def after_rotation(loaded: Any, *given: Any) -> list[tuple[Seen, Seen]]:
    """See keys as the model rotated them."""
    layers = tuple(replace(layer, rotary=None) for layer in loaded.view.layers)
    return seen(replace(loaded, view=replace(loaded.view, layers=layers)), *given)


def at_once(levels: Tensor, *given: Any) -> tuple[Tensor, float]:
    """Stay at the start."""
    return levels, lloyd(levels, *given)[1]


_LOOPS, _EXACT, _BOUND = (
    kvquant.codes_equal_plain_loops,
    kvquant.outliers_and_first_tokens_are_exact,
    kvquant.others_stay_within_their_bound,
)
_UNROTATED = kvquant.keys_are_kept_as_they_were_before_rotation
_SNAPKV, _WINDOW = (partial(kvquant.selection_composes, name) for name in ("snapkv", "sliding_window"))
_GRADIENTS = partial(codebooks.gradients_are_those_of_the_loss, "llama_gqa")

MUTANTS = (
    Mutant(name="the level above", patches=((codec, "nearest", next_level),), killed_by=(_LOOPS, _BOUND)),
    Mutant(
        name="keys are packed with their rotation",
        patches=((CodebookPayload, "_encoded", still_rotated),),
        killed_by=(_UNROTATED,),
    ),
    Mutant(
        name="keys stay without rotation", patches=((CodebookPayload, "_coded", not_rotated),), killed_by=(_UNROTATED,)
    ),
    Mutant(
        name="keys are rotated to their neighbours' places",
        patches=((CodebookPayload, "entries", one_late),),
        killed_by=(_UNROTATED,),
    ),
    Mutant(
        name="what is no outlier is kept", patches=((codec, "of_each", least_outliers),), killed_by=(_LOOPS, _EXACT)
    ),
    Mutant(
        name="outliers set the scale", patches=((codec, "of_each", outliers_set_the_scale),), killed_by=(_LOOPS, _BOUND)
    ),
    Mutant(name="outliers are lost", patches=((CodebookPayload, "_coded", no_outliers),), killed_by=(_LOOPS, _EXACT)),
    Mutant(
        name="outliers are beside their place",
        patches=((CodebookPayload, "_encoded", one_channel_on),),
        killed_by=(_EXACT,),
    ),
    Mutant(
        name="first tokens are rounded", patches=((CodebookPayload, "write", first_ones_rounded),), killed_by=(_EXACT,)
    ),
    Mutant(
        name="a token is written again",
        patches=((CodebookPayload, "write", scales_follow),),
        killed_by=(kvquant.a_token_is_written_once,),
    ),
    Mutant(
        name="slots are not told apart",
        patches=((codec, "_put", everywhere),),
        killed_by=(kvquant.any_slot_can_be_written,),
    ),
    Mutant(
        name="an outlier's place costs nothing",
        patches=((CodebookFormat, "allocated_bytes", free_channels),),
        killed_by=(kvquant.bytes_are_counted_to_the_last,),
    ),
    Mutant(
        name="tables cost nothing",
        patches=((KVQuant, "of_layer", no_tables),),
        killed_by=(kvquant.bytes_are_counted_to_the_last,),
    ),
    Mutant(
        name="first tokens are read last",
        patches=((CodebookPayload, "entries", first_ones_last), (kvquant, "ENTRIES", entries_of)),
        killed_by=(_LOOPS, _SNAPKV),
    ),
    Mutant(
        name="logits of the first tokens come last",
        patches=((Rows, "logits", lambda self, rows: dense_logits(self, rows).roll(1, dims=-1)),),
        killed_by=(kvquant.attention_is_that_on_what_is_read, _WINDOW),
    ),
    Mutant(
        name="all keys are unpacked at once",
        patches=((Rows, "logits", dense_logits),),
        killed_by=(kvquant.a_step_needs_little_room,),
    ),
    Mutant(
        name="rows of different lengths lie together",
        patches=((KVQuant, "of_layer", together),),
        killed_by=(kvquant.rows_begin_with_their_first_tokens,),
    ),
    Mutant(
        name="sinks are written without their positions",
        patches=((Store, "_move_sinks", without_positions),),
        killed_by=(kvquant.sinks_that_move_along_compose,),
    ),
    Mutant(
        name="bare models have small tables",
        patches=((codec, "tables", coarse_even),),
        killed_by=(kvquant.a_model_without_weights_is_counted,),
    ),
    Mutant(
        name="all numbers count alike",
        patches=((calibration, "of_channels", all_alike), (calibration, "of_tokens", values_alike)),
        killed_by=(codebooks.tables_go_by_what_an_error_costs,),
    ),
    Mutant(
        name="gradients are mixed up",
        patches=((codebooks, "seen", rotated_gradients),),
        killed_by=(_GRADIENTS,),
    ),
    Mutant(
        name="keys are seen after rotation",
        patches=((codebooks, "seen", after_rotation),),
        killed_by=(_GRADIENTS,),
    ),
    Mutant(
        name="limits are those of rotated keys",
        patches=((calibration, "seen", after_rotation),),
        killed_by=(codebooks.thresholds_are_percentiles,),
    ),
    Mutant(
        name="keys are never unrotated",
        patches=(
            (codebooks, "seen", after_rotation),
            (CodebookPayload, "_encoded", still_rotated),
            (CodebookPayload, "_coded", not_rotated),
        ),
        killed_by=(codebooks.keys_before_rotation_lose_less,),
    ),
    Mutant(
        name="levels stay where they begin",
        patches=((calibration, "_lloyd", at_once),),
        killed_by=(codebooks.a_table_is_plain_lloyd_and_loses_no_more_than_even_steps,),
    ),
)
