"""What a cache layer is told to do: the parts of a strategy, resolved for one layer and one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.cache.codecs.alone import are_alone
from kvbench.cache.codecs.base import Format, LayerCodec, QueryDriven, SizedByPrompt
from kvbench.cache.codecs.dense import CompiledDense
from kvbench.cache.codecs.kernel import chosen_kernel
from kvbench.cache.page_table import PageTable, num_pages
from kvbench.cache.protocols import Evicted, Fitted, Handing, Pages, Repeater, Scorer, Selector, Sharer
from kvbench.kernels.packed import Kernel
from kvbench.types import LayerShape, RunShape

if TYPE_CHECKING:
    from kvbench.cache.pages import Paging
    from kvbench.cache.pair import Pair
    from kvbench.cache.placement.rooms import Place

GROW_SHARE = 4  # a cache of unknown length grows by a quarter
GROW_LEAST = 64  # entries
SPAN_NUMBERS = 3  # that say of a head where its entries begin and end, and at which position


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of rows and heads of a layer that is stored on its own.

    Args:
        rows: of the batch.
        heads: KV heads.
        plan: the layer's, for these heads.
        run: the batch's, for these rows.
    """

    rows: slice
    heads: slice
    plan: LayerPlan
    run: RunShape


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer's part of a strategy.

    Args:
        index: of the layer.
        shape: what the layer stores per token.
        codec: how entries are written.
        scorer: how entries are ranked.
        selector: which entries stay.
        evicted: what becomes of the others.
        budget: entries kept per row, or None to keep all.
        counts: entries kept per row and KV head where these are known to differ; None in it keeps all of a head.
        sharer: what decides how heads differ once they are scored, or None.
        period: entries that gather while decoding before as many leave; 0 if none ever do.
        by_rank: whether the sinks move along, so that distances count kept entries only.
        rerotates: whether the keys kept at the prompt's end are turned to positions 0, 1, 2 ...
        clamps: whether what has left is read as if it were as far away as the oldest entry that has not.
        in_pieces: whether a piece of the prompt is packed before the next one is read.
        paging: which entries a decode step reads; None for all.
        pair: the part in a pair of layers that share their prompt; None for a layer on its own.
        place: where entries lie between steps; None for the device.
        pages: how slots lie in pages; None where they lie one behind the other.
    """

    index: int
    shape: LayerShape
    codec: LayerCodec
    scorer: Scorer
    selector: Selector
    evicted: Evicted
    budget: tuple[int, ...] | None
    counts: tuple[tuple[int | None, ...], ...] | None = None
    sharer: Sharer | None = None
    period: int
    by_rank: bool
    rerotates: bool = False
    clamps: bool = False
    in_pieces: bool = False
    paging: Paging | None = None
    pair: Pair | None = None
    place: Place | None = None
    pages: Pages | None = None

    @property
    def evicts(self) -> bool:
        """Whether entries leave while decoding."""
        return self.period > 0 and self.budget is not None

    @property
    def compresses(self) -> bool:
        """Whether entries may leave at all."""
        return self.budget is not None

    @cached_property
    def repeater(self) -> Repeater | None:
        """The scorer, if it has the prompt read once more."""
        return self.scorer if self.compresses and isinstance(self.scorer, Repeater) else None

    @cached_property
    def _fitted(self) -> Fitted | None:
        """The selector, if its rule differs from region to region."""
        return self.selector if isinstance(self.selector, Fitted) else None

    @cached_property
    def handing(self) -> Handing | None:
        """What becomes of entries that leave, if they are kept where later steps may find them."""
        return self.evicted if self.compresses and isinstance(self.evicted, Handing) else None

    @property
    def stays(self) -> bool:
        """Whether all of the prompt stays as it was read, where it was read."""
        is_kept = self.pair is None and self.shape.part != "new" and self._has_entries
        return is_kept and not self.compresses and self.codec.is_exact

    @property
    def one_by_one(self) -> bool:
        """Whether each of several new tokens must find what the one before it left."""
        return self.evicts or self.paging is not None or self.pair is not None or not self.codec.is_exact

    @property
    def num_queries(self) -> int:
        """Last queries of a prompt that its entries are written by."""
        how = self.codec.key_format
        return how.num_queries if isinstance(how, QueryDriven) else 0

    @property
    def formats(self) -> tuple[Format, Format]:
        """How keys and values are written."""
        return self.codec.key_format, self.codec.value_format

    def lies_ragged(self, run: RunShape) -> bool:
        """Whether heads keep different numbers of entries, one behind the other, as each is written alone."""
        return self._can_lie_ragged and self._heads_differ(run)

    @cached_property
    def _can_lie_ragged(self) -> bool:
        is_elsewhere = self.place is not None or self.handing is not None or self.paging is not None
        moves = self.evicts or self.evicted.merges or self.pair is not None or self.shape.values_are_keys
        fits = self.pages is None and self._fitted is None and all(map(are_alone, self.formats))
        return self.compresses and fits and not (is_elsewhere or moves)

    def _heads_differ(self, run: RunShape) -> bool:
        """Whether heads of a layer keep different numbers of entries of some row, as far as that is known now."""
        if self.sharer is not None and self.sharer.by_head and self.scorer.per_head:
            assert self.budget is not None
            return any(most < length for most, length in zip(self.budget, run.prompt_lengths, strict=True))
        if self.counts is None:
            return False
        kept, heads = self.kept(run), self.shape.kv_heads
        return any(len(set(kept[first : first + heads])) > 1 for first in range(0, len(kept), heads))

    def kept(self, run: RunShape) -> list[int]:
        """Return the entries that each head keeps of the prompt, row by row, where heads differ; or else on average."""
        assert self.budget is not None
        at_worst = self.sharer is not None and self.sharer.data_dependent  # everything is kept
        most_known = (None,) * run.batch_size if at_worst else self.budget
        counts = self.counts or [[most] * self.shape.kv_heads for most in most_known]
        lengths = run.prompt_lengths
        return [n if most is None else min(n, most) for n, row in zip(lengths, counts, strict=True) for most in row]

    def more(self, run: RunShape) -> int:
        """Return how many entries each head has room for beside those of the prompt, where heads differ."""
        mean = max(self.held(run, run.prompt_tokens))
        return grown(mean) - mean if run.new_tokens is None else run.new_tokens

    def kernel_on(self, device: torch.device, dtype: torch.dtype, run: RunShape) -> Kernel | None:
        """Return what reads entries that are kept as the model made them; None for plain torch."""
        if self.lies_ragged(run):
            return chosen_kernel("auto", device, dtype)
        return "native" if isinstance(self.codec, CompiledDense) else None

    @property
    def score_heads(self) -> int:
        """How many kept sets the layer has: one, or one per KV head."""
        return self.shape.kv_heads if self.compresses and self.scorer.per_head else 1

    @property
    def num_reserved(self) -> int:
        """Entries of the budget that are no token's own."""
        return self.evicted.num_reserved if self.compresses else 0

    @property
    def state_width(self) -> int:
        """Numbers kept per row and KV head for what becomes of entries that leave."""
        return self.evicted.state_width(self.shape) if self.compresses else 0

    @property
    def slack(self) -> int:
        """Entries by which bytes may differ from those of the mean, where heads share and fill groups unevenly."""
        shares = self.sharer is not None and not self.codec.writes_each_token_alone
        return self.codec.flush_tokens - 1 if shares else 0

    @property
    def needs_rows_apart(self) -> bool:
        """Whether rows of different lengths cannot be stored together."""
        if self.sharer is not None:  # what each row keeps is not known in advance, nor which keeps most
            return True
        evicts_apart = self.evicts and (self.period > 1 or self.evicted.merges or self.scorer.scores_again)
        by_row = not self.codec.writes_each_token_alone or self.codec.num_sink > 0  # begin where a row does, as pages
        return evicts_apart or self.paging is not None or self.handing is not None or by_row

    def is_ring(self, run: RunShape) -> bool:
        """Whether the next victim is known without a score, and the same in every row."""
        is_gone = not self.evicted.merges and self.handing is None
        simple = self.scorer.is_recency and self.period == 1 and is_gone
        return self.evicts and simple and not self.is_ragged(run)

    def is_ragged(self, run: RunShape) -> bool:
        """Whether rows hold different numbers of entries."""
        return len(set(run.prompt_lengths)) > 1 or (self.budget is not None and len(set(self.budget)) > 1)

    def regions(self, run: RunShape, counts: Sequence[Sequence[int | None]] | None = None) -> list[Region]:
        """Return the rectangles that are stored on their own: one, unless heads keep different numbers of entries.

        Args:
            run: how long the rows are.
            counts: entries kept per row and KV head, None to keep all of them; by default what is known in advance.
        """
        counts = self.counts if counts is None else counts
        if self.lies_ragged(run):
            plan = self if counts is None else replace(self, counts=tuple(map(tuple, counts)))
            return [Region(rows=slice(0, run.batch_size), heads=slice(0, self.shape.kv_heads), plan=plan, run=run)]
        if counts is None and self.sharer is not None and self.sharer.data_dependent:  # at worst everything is kept
            counts = [[None] * self.shape.kv_heads] * run.batch_size
        heads = slice(0, self.shape.kv_heads)
        if counts is None or all(len(set(row)) == 1 for row in counts):
            if counts is not None:
                return self._whole(run, [row[0] for row in counts])
            stays_together = self.stays or not (self.is_ragged(run) and self.needs_rows_apart)
            if stays_together or self.pair is not None:
                return [Region(rows=slice(0, run.batch_size), heads=heads, plan=self, run=run)]
            counts = [[most] * self.shape.kv_heads for most in self.budget or (None,) * run.batch_size]
        return [
            self._region(run, slice(row, row + 1), slice(first, last), (row_counts[first],))
            for row, row_counts in enumerate(counts)
            for first, last in _runs(row_counts)
        ]

    def _whole(self, run: RunShape, budgets: Sequence[int | None]) -> list[Region]:
        """Return regions that hold all heads."""
        heads, rows = slice(0, self.shape.kv_heads), range(run.batch_size)
        limited = [most for most in budgets if most is not None]
        ragged = self.is_ragged(run) or len(set(limited)) > 1
        together = len(limited) == len(budgets) and not (ragged and self.needs_rows_apart)
        if not limited or together:
            return [self._region(run, slice(0, run.batch_size), heads, tuple(limited) or (None,))]
        return [self._region(run, slice(row, row + 1), heads, (budgets[row],)) for row in rows]

    def _region(self, run: RunShape, rows: slice, heads: slice, budget: tuple[int | None, ...]) -> Region:
        known = tuple(most for most in budget if most is not None)
        selector = self.selector
        if known and self._fitted is not None:
            selector = self._fitted.fit(known, run.prompt_lengths[rows])
        plan = replace(
            self,
            selector=selector,
            shape=self.shape.of_heads(heads),
            codec=self.codec.of_heads(heads),
            budget=known or None,
            counts=None,
            sharer=None,
            paging=None if self.paging is None else self.paging.of_rows(rows),
        )
        return Region(rows=rows, heads=heads, plan=plan, run=replace(run, prompt_lengths=run.prompt_lengths[rows]))

    def held(self, run: RunShape, tokens_seen: int) -> tuple[int, ...]:
        """Return the entries each row holds after so many columns, padding not counted."""
        rows = [max(0, tokens_seen - pad) for pad in run.padding]
        if self.budget is None:
            return tuple(rows)
        decoded = max(0, tokens_seen - run.prompt_tokens)
        if self.period > 0:
            read = [row - decoded + self.num_reserved for row in rows]
            return tuple(
                _after_evictions(n, decoded, limit, self.period) for n, limit in zip(read, self.budget, strict=True)
            )
        return tuple(
            min(row - decoded + self.num_reserved, most) + decoded for row, most in zip(rows, self.budget, strict=True)
        )

    def capacity(self, run: RunShape) -> int:
        """Return the slots per row and head that are allocated once the prompt is read."""
        if self.pair is not None:  # the prompt has a place of its own
            return grown(run.prompt_tokens) - run.prompt_tokens if run.new_tokens is None else run.new_tokens
        kept = max(self.held(run, run.prompt_tokens)) if self.compresses else run.prompt_tokens
        if self.budget is not None and self.period > 0:
            longest = max(self.budget) + self.period  # the newest entries are attended to before some leave
            if run.new_tokens is None:
                return longest
            total = max(run.prompt_lengths) + run.new_tokens + self.num_reserved
            return longest if self.is_ragged(run) else min(longest, total)
        return kept + (grown(kept) - kept if run.new_tokens is None else run.new_tokens)

    def unused(self, run: RunShape) -> tuple[int, ...]:
        """Return how many first slots of each row hold nothing, as they are padding."""
        return (0,) * run.batch_size if self.compresses else run.padding

    def paged(self, run: RunShape, like: Tensor) -> tuple[PageTable, Kernel] | None:
        """Return which pages hold the slots of a region, and what reads dense entries; None without pages."""
        if self.pages is None:
            return None
        table = PageTable(self.pages.page_tokens, self.capacity(run), self.unused(run), like.device)
        return table, chosen_kernel(self.pages.kernel, like.device, like.dtype)

    def pool_bytes(self, pages: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many pages of this layer."""
        assert self.pages is not None
        shape, slots = self.shape, pages * self.pages.page_tokens
        if shape.donor is not None:
            return 0
        payload = self.codec.key_format.allocated_bytes(shape.kv_heads, shape.key_dim, slots, dtype)
        if not shape.values_are_keys:
            payload += self.codec.value_format.allocated_bytes(shape.kv_heads, shape.value_dim, slots, dtype)
        return payload

    def room_bytes(self, slots: int, run: RunShape, dtype: torch.dtype, unused: int = 0) -> int:
        """Return the bytes of so many slots of one row, the first of which are unused, over all heads, and metadata."""
        shape, (keys, values) = self.shape, self._formats(run)
        room, table = slots, 0
        if self.pages is not None:
            size = self.pages.page_tokens
            room = size * num_pages(size, slots, (unused,))
            table = -(-slots // size) * torch.int32.itemsize
        payload = keys.allocated_bytes(shape.kv_heads, shape.key_dim, room, dtype)
        if not shape.values_are_keys:
            payload += values.allocated_bytes(shape.kv_heads, shape.value_dim, room, dtype)
        return payload + table + slots * self._beside_bytes(run, dtype)

    def entry_bytes(self, entries: int, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes of so many slots that are in use, of one row, over all heads, metadata included."""
        shape, (keys, values) = self.shape, self._formats(run)
        payload = keys.used_bytes(shape.kv_heads, shape.key_dim, entries, dtype)
        if not shape.values_are_keys:
            payload += values.used_bytes(shape.kv_heads, shape.value_dim, entries, dtype)
        return payload + entries * self._beside_bytes(run, dtype)

    def _formats(self, run: RunShape) -> tuple[Format, Format]:
        """Return how keys and values are written behind what rows keep of the prompt."""
        prompt = 0 if self.pair is not None else self.held(run, run.prompt_tokens)[0]
        keys, values = (
            how.after(prompt) if isinstance(how, SizedByPrompt) else how
            for how in (self.codec.key_format, self.codec.value_format)
        )
        return keys, values

    def _beside_bytes(self, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes of what stands beside one entry of one row."""
        beside = torch.int32.itemsize
        if self.keeps_score(run):
            beside += score_dtype(dtype).itemsize + self.scorer.memory_bytes
        if self.compresses and self.evicted.weighs:
            beside += score_dtype(dtype).itemsize
        return self.score_heads * beside

    def keeps_score(self, run: RunShape) -> bool:
        """Whether a score is kept beside each entry."""
        return self.evicts and not self.is_ring(run)

    def fixed_bytes(self, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes that do not depend on the number of slots."""
        working = 0
        if self.keeps_score(run):  # the slots to fill next; where rows differ, budget and recent entries
            numbers = self.score_heads * self.period + 2 * self.is_ragged(run)
            working = run.batch_size * numbers * torch.int64.itemsize
            if self.scorer.scores_again:
                queries = self.scorer.voters(run.prompt_tokens) * self.shape.query_heads * self.shape.key_dim
                working += run.batch_size * (queries * dtype.itemsize)
        sinks = run.batch_size * self.shape.kv_heads * self.num_moving * self.shape.key_dim * dtype.itemsize
        ranks = run.batch_size * torch.int64.itemsize if self.gives_rank else 0
        state = run.batch_size * self.shape.kv_heads * self.state_width * score_dtype(dtype).itemsize
        return working + sinks + ranks + state

    @property
    def _has_entries(self) -> bool:
        return self.shape.donor is None and not self.shape.states and self.shape.part != "none"

    def allocated_bytes(self, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes held once the prompt is read, over all regions."""
        if self.shape.part == "none":
            return run.batch_size * self.text_slots(run) * torch.int64.itemsize
        if not self._has_entries:
            return run.batch_size * self.shape.state_bytes
        run = run.of(self.shape.part)
        if self.lies_ragged(run):
            entries = sum(self.kept(run)) + self.more(run) * self._num_sets(run)
            return self.codec.fixed_bytes + self.ragged_bytes(run, dtype, entries)
        return self.codec.fixed_bytes + sum(
            region.plan._rooms_bytes(region.plan.capacity(region.run) + self.slack, region.run, dtype)
            + region.plan.fixed_bytes(region.run, dtype)
            + region.plan._reading_bytes(region.run, dtype)
            for region in self.regions(run)
        )

    def _num_sets(self, run: RunShape) -> int:
        return run.batch_size * self.shape.kv_heads

    def ragged_bytes(self, run: RunShape, dtype: torch.dtype, entries: int) -> int:
        """Return the bytes of so many entries over all rows and heads, and of what says whose they are."""
        keys, values = self.formats
        payload = keys.allocated_bytes(1, self.shape.key_dim, entries, dtype)
        payload += values.allocated_bytes(1, self.shape.value_dim, entries, dtype)
        tables = SPAN_NUMBERS * self._num_sets(run) * torch.int64.itemsize
        return payload + entries * torch.int32.itemsize + tables

    def text_slots(self, run: RunShape) -> int:
        """Return how many ids of each row the layer keeps, where no layer keeps entries: the first one does."""
        prompt = run.prompt_tokens
        return (grown(prompt) if run.new_tokens is None else prompt + run.new_tokens) if self.index == 0 else 0

    def text_bytes(self, run: RunShape, tokens_seen: int) -> int:
        """Return the bytes of the ids that the layer keeps of so many columns, padding not counted."""
        return sum(max(0, tokens_seen - pad) for pad in run.padding) * torch.int64.itemsize if self.index == 0 else 0

    def _rooms_bytes(self, slots: int, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes of so many slots of every row."""
        alike = Counter(self.unused(run) if self.pages is not None else (0,) * run.batch_size)
        return sum(count * self.room_bytes(slots, run, dtype, unused) for unused, count in alike.items())

    def _reading_bytes(self, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes of what stands beside the slots: bounds of pages, what has left, the prompt of a pair."""
        if self.handing is not None:
            return self.handing.placed(self, run, dtype).device
        if self.paging is not None:
            return self.paging.allocated_bytes(self.shape, dtype, self.capacity(run))
        return 0 if self.pair is None else self.pair.allocated_bytes(self.shape, run, dtype)

    def used_bytes(self, run: RunShape, dtype: torch.dtype, tokens_seen: int) -> int:
        """Return the bytes of occupied slots after so many columns, over all regions."""
        if self.shape.part == "none":
            return self.text_bytes(run, tokens_seen)
        if not self._has_entries:
            return run.batch_size * self.shape.state_bytes
        if self.shape.part == "new":
            tokens_seen = max(0, tokens_seen - run.prompt_tokens)
        elif self.shape.part == "prompt":
            tokens_seen = min(tokens_seen, run.prompt_tokens)
        run = run.of(self.shape.part)
        if self.lies_ragged(run):
            pads = [pad for pad in run.padding for _ in range(self.shape.kv_heads)]
            entries = sum(
                min(kept, max(0, tokens_seen - pad)) for kept, pad in zip(self.kept(run), pads, strict=True)
            ) + max(0, tokens_seen - run.prompt_tokens) * len(pads)
            return self.codec.fixed_bytes + self.ragged_bytes(run, dtype, entries)
        total = self.codec.fixed_bytes
        for region in self.regions(run):
            decoded = max(0, tokens_seen - run.prompt_tokens)
            seen = region.run.prompt_tokens + decoded if tokens_seen >= run.prompt_tokens else tokens_seen
            held = region.plan.held(region.run, seen)
            if region.plan.handing is not None:
                total += region.plan.handing.used_bytes(region.plan, region.run, dtype, seen)
            elif self.paging is not None:
                total += self.paging.bytes(region.plan.shape, dtype, held)
            if self.pair is not None and tokens_seen >= run.prompt_tokens:
                total += self.pair.used_bytes(self.shape, run, dtype)
                held = (decoded,) * run.batch_size
            total += sum(region.plan.entry_bytes(entries + self.slack, region.run, dtype) for entries in held)
        return total

    @property
    def gives_rank(self) -> bool:
        """Whether this layer's budget says where new tokens are read: keys kept cannot follow, or have moved."""
        return self.index == 0 and ((self.by_rank and self.shape.rotary is None) or self.rerotates)

    @property
    def num_moving(self) -> int:
        """Sinks whose keys are turned anew at every step."""
        return self.selector.num_sink if self.by_rank and self.shape.rotary is not None else 0


def _runs(values: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Yield where runs of equal values begin and end."""
    first = 0
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] != values[first]:
            yield first, at
            first = at


def _after_evictions(prompt: int, decoded: int, limit: int, period: int) -> int:
    """Return how many entries are held when `period` of them leave each time there are so many above the limit."""
    total = min(prompt, limit) + decoded
    return total if total < limit + period else limit + (total - limit) % period


def grown(entries: int) -> int:
    """Return the next capacity of a cache whose length nobody knows."""
    return entries + max(GROW_LEAST, entries // GROW_SHARE)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype scores are kept in: float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)


def padding_bytes(run: RunShape) -> int:
    """Return the bytes that say how much padding each row has."""
    return run.batch_size * torch.int32.itemsize if any(run.padding) else 0
