"""Readers of pages that each get one thing wrong."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kvbench.cache import pages
from kvbench.cache.pages import Pages, Paging
from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import Tile
from kvbench.strategies.reader.pages import ReadPages
from kvbench.types import LayerShape
from tests.mutants.core_mutant import Mutant
from tests.support import checks, readers

start, tiles, choose, note, bounds_of = Pages.start, Pages.tiles, Pages._choose, Pages._note, pages.upper_bounds
init, restore = Pages.__init__, Pages.restore
SNAPKV = (
    "strategy/reader=pages",
    "reader.size=3",
    "reader.unit=tokens",
    "reader.amount=6",
    "reader.least_pages=1",
    "reader.skip_layers=[]",
    "budget.unit=ratio",
    "budget.amount=0.5",
)


def by_means(query: Tensor, bounds: Tensor) -> Tensor:
    """Score a page by what lies in its middle."""
    width = bounds.shape[3] // 2
    middle = (bounds[..., :width] - bounds[..., width:]) / 2
    rows = query.unflatten(1, (bounds.shape[1], -1)).sum(dim=2)
    return torch.matmul(middle, rows.transpose(-1, -2))[..., 0]


def by_largest_only(query: Tensor, bounds: Tensor) -> Tensor:
    """Forget that a negative query likes small keys."""
    width = bounds.shape[3] // 2
    rows = query.unflatten(1, (bounds.shape[1], -1)).sum(dim=2)
    return torch.matmul(bounds[..., :width], rows.transpose(-1, -2))[..., 0]


def by_first_query(query: Tensor, bounds: Tensor) -> Tensor:
    """Let one query head of a group choose for all."""
    share = query.shape[1] // bounds.shape[1]
    return bounds_of(query[:, ::share], bounds)


def newest_may_miss(self: Pages, query: Tensor, slot: int, count: int) -> Tensor:
    """Let the newest page compete."""
    score = bounds_of(query, self.bounds.narrow(2, 0, count))
    return score.topk(min(max(self.paging.most), count), dim=-1).indices


def the_latest(self: Pages, query: Tensor, slot: int, count: int) -> Tensor:
    """Look at no bound."""
    batch, heads = self.bounds.shape[:2]
    return torch.arange(count - min(max(self.paging.most), count), count).expand(batch, heads, -1)


def newest_unnoted(self: Pages, key: Tensor, slot: int) -> None:
    """Keep the bounds of the prompt."""


def from_zero(self: Pages, *arguments: object) -> None:
    """Begin a page with zeros, as if it held a key of nothing."""
    init(self, *arguments)  # type: ignore[arg-type]
    self.bounds.zero_()


def by_column(self: Pages, *arguments: object) -> None:
    """Begin pages where the padding does."""
    init(self, *arguments)  # type: ignore[arg-type]
    self.padding = None


def alike(self: Pages, *arguments: object) -> None:
    """Read as many pages of every row."""
    init(self, *arguments)  # type: ignore[arg-type]
    self._most = None


def with_the_rest(self: Pages, query: Tensor, slots: Slots) -> list[Tile]:
    """Read what lies beyond the newest entry."""
    return [Tile(tile.keys, tile.values) for tile in tiles(self, query, slots)]


def not_put_back(self: Pages, snapshot: object, filled: int) -> None:
    """Keep the bounds as they are."""


def later_ones_stay(self: Pages, snapshot: object, filled: int) -> None:
    """Put the newest page back and leave what stood in later ones."""
    later = self.bounds.clone()
    restore(self, snapshot, filled)
    self.bounds.copy_(torch.where(self.bounds == -torch.inf, later, self.bounds))


def cannot_grow(self: Pages, capacity: int) -> None:
    """Move to empty bounds."""
    self.bounds = self.bounds.new_zeros(*self.bounds.shape[:2], self.paging.pages(capacity), self.bounds.shape[3])


def for_nothing(self: Paging, shape: LayerShape, dtype: torch.dtype, entries: object) -> int:
    """Count no bounds."""
    return 0


def read_for_nothing(self: Pages, entries: list[int], slot_bytes: int) -> int:
    """Count the entries that are read and not the bounds."""
    return sum(entries) * slot_bytes


def rounded(self: ReadPages, length: int) -> int:
    """Count pages in floating point."""
    return max(self.least_pages, int(self.amount * length if self.unit == "ratio" else self.amount) // self.size)


def above_amount(self: ReadPages, length: int) -> int:
    """Read the newest page on top."""
    return pages_of(self, length) + 1


def looked_at(self: Pages, query: Tensor, slot: int, count: int) -> Tensor:
    """Read the chosen pages on the host."""
    chosen = choose(self, query, slot, count)
    assert chosen.max().item() >= 0
    return chosen


def gathered_first(self: Pages, query: Tensor, slots: Slots) -> list[Tile]:
    """Copy everything that is held."""
    self.copy = slots.keys.read(slots.filled).clone()  # type: ignore[attr-defined]
    return tiles(self, query, slots)


pages_of = ReadPages._pages
LOOPS = partial(readers.equals_loops_over_pages, "llama_gqa")

MUTANTS = (
    Mutant(
        name="pages are scored by their middle",
        patches=((pages, "upper_bounds", by_means), (readers, "upper_bounds", by_means)),
        killed_by=(readers.worked_pages, readers.bounds_hold, LOOPS),
    ),
    Mutant(
        name="pages are scored by their largest numbers",
        patches=((pages, "upper_bounds", by_largest_only), (readers, "upper_bounds", by_largest_only)),
        killed_by=(readers.bounds_hold, LOOPS),
    ),
    Mutant(
        name="the latest pages are read",
        patches=((Pages, "_choose", the_latest),),
        killed_by=(readers.planted_key_is_read, partial(readers.single_entries_are_exact_top_k, "gpt2"), LOOPS),
    ),
    Mutant(
        name="one query head chooses for its group",
        patches=((pages, "upper_bounds", by_first_query),),
        killed_by=(LOOPS, partial(readers.single_entries_are_exact_top_k, "llama_gqa")),
    ),
    Mutant(
        name="the newest page may be missed",
        patches=((Pages, "_choose", newest_may_miss),),
        killed_by=(LOOPS, partial(readers.equals_loops_over_pages, "gpt2")),
    ),
    Mutant(
        name="new keys do not count",
        patches=((Pages, "_note", newest_unnoted),),
        killed_by=(readers.bounds_hold, partial(readers.equals_loops_over_pages, "llama_mha")),
    ),
    Mutant(
        name="a page begins with zeros",
        patches=((Pages, "__init__", from_zero),),
        killed_by=(readers.bounds_hold,),
    ),
    Mutant(
        name="pages begin with the padding",
        patches=((Pages, "__init__", by_column),),
        killed_by=(partial(LOOPS, lengths=(17, PROMPT := checks.PROMPT, 10), most=(3, 3, 3)),),
    ),
    Mutant(
        name="every row reads as many pages",
        patches=((Pages, "__init__", alike),),
        killed_by=(
            partial(
                LOOPS, lengths=(17, PROMPT), overrides=("reader.unit=ratio", "reader.amount=0.5"), most=(2, 4), new=8
            ),
        ),
    ),
    Mutant(
        name="a page is read to its end",
        patches=((Pages, "tiles", with_the_rest),),
        killed_by=(LOOPS, partial(LOOPS, name="snapkv", overrides=SNAPKV, most=(2,))),
    ),
    Mutant(
        name="bounds are not put back",
        patches=((Pages, "restore", not_put_back),),
        killed_by=(readers.a_restored_cache_forgets_what_followed,),
    ),
    Mutant(
        name="later pages are not emptied",
        patches=((Pages, "restore", later_ones_stay),),
        killed_by=(readers.a_restored_cache_forgets_what_followed,),
    ),
    Mutant(
        name="bounds are lost when the cache grows",
        patches=((Pages, "grow", cannot_grow),),
        killed_by=(partial(checks.growing_equals_fixed, "quest", "llama_gqa"),),
    ),
    Mutant(
        name="bounds cost nothing",
        patches=((Paging, "bytes", for_nothing),),
        killed_by=(partial(readers.bytes_of_pages, "llama_gqa"),),
    ),
    Mutant(
        name="what is not read counts as read",
        patches=((Pages, "read_bytes", read_for_nothing),),
        killed_by=(partial(readers.bytes_of_pages, "gpt2"),),
    ),
    Mutant(
        name="pages are counted in floating point",
        patches=((ReadPages, "_pages", rounded),),
        killed_by=(readers.pages_are_counted_exactly,),
    ),
    Mutant(
        name="the newest page comes on top",
        patches=((ReadPages, "_pages", above_amount),),
        killed_by=(readers.pages_are_counted_exactly, LOOPS),
    ),
    Mutant(
        name="a step reads the choice on the host",
        patches=((Pages, "_choose", looked_at),),
        killed_by=(readers.a_step_waits_for_nothing,),
    ),
    Mutant(
        name="a step copies all keys",
        patches=((Pages, "tiles", gathered_first),),
        killed_by=(readers.a_step_waits_for_nothing,),
    ),
    Mutant(
        name="several tokens at once read everything",
        patches=((LayerPlan, "one_by_one", property(lambda self: self.evicts)),),
        killed_by=(partial(checks.many_tokens_equal_one_by_one, "quest", "llama_gqa"),),
    ),
    Mutant(
        name="nothing is ever all",
        patches=((Pages, "tiles", lambda self, query, slots: tiles(self, query, slots)[:0] or _cut(self, slots)),),
        killed_by=(partial(readers.reading_everything_is_the_baseline, "llama_gqa"),),
    ),
)


def _cut(self: Pages, slots: Slots) -> list[Tile]:
    """Read all entries but the first."""
    (tile,) = slots.tiles()
    visible = None if tile.visible is None else tile.visible[:, :, 1:]
    keys, values = (payload.read(slots.filled)[:, :, 1:] for payload in (slots.keys, slots.values))
    return [Tile(keys, values, visible=visible)]
