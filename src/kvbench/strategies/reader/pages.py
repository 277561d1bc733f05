"""Few pages are read, those whose keys may matter most to the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from kvbench.cache.pages import Paging
from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class ReadPages:
    """Reads the pages with the largest upper bounds on a query's logits, and the newest page always.

    Source: Tang et al. (Quest), arXiv:2406.10774, sec. 3; https://github.com/mit-han-lab/Quest.
    Deviates: pages are chosen per KV head by the sum of its query heads' bounds, where the reference chooses per query
        head, so that a model with shared KV heads reads no page twice. Keys and values of the chosen pages are copied
        together before attention reads them; the reference has a kernel that reads them in place.

    Args:
        size: entries of a page.
        amount: how much a decode step reads, the newest page included: a fraction of the row's prompt (unit "ratio")
            or entries per KV head ("tokens"); whole pages only.
        unit: what `amount` counts.
        least_pages: pages read however small the amount is.
        skip_layers: layers that read everything.
    """

    reads_all: ClassVar[bool] = False
    paging: ClassVar[type[Paging]] = Paging

    size: int
    amount: float
    unit: Literal["ratio", "tokens"]
    least_pages: int
    skip_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.unit == "ratio" and not 0 < self.amount <= 1:
            raise ValueError(
                f"strategy.reader.amount with strategy.reader.unit=ratio is the fraction read, above 0 and at most 1; "
                f"got {self.amount}. For a number of entries set strategy.reader.unit=tokens."
            )
        if self.unit == "tokens" and (self.amount < 1 or self.amount != int(self.amount)):
            raise ValueError(
                f"strategy.reader.amount with strategy.reader.unit=tokens must be a whole number of at least 1; "
                f"got {self.amount}. For a fraction of the prompt set strategy.reader.unit=ratio."
            )
        if self.unit not in ("ratio", "tokens"):
            raise ValueError(f"strategy.reader.unit must be ratio or tokens; got {self.unit!r}.")
        if self.size < 1 or self.least_pages < 1:
            raise ValueError(
                f"strategy.reader.size and strategy.reader.least_pages must be at least 1; got size={self.size}, "
                f"least_pages={self.least_pages}."
            )

    @property
    def needs_tiers(self) -> bool:
        """Whether it tells apart only pages of entries that have left."""
        return not self.paging.reads_slots

    def pagings(self, view: ModelView, run: RunShape) -> Sequence[Paging | None]:
        """Return the same pages for every layer that neither is skipped nor slides."""
        outside = [index for index in self.skip_layers if not 0 <= index < len(view.layers)]
        if outside:
            raise ValueError(
                f"strategy.reader.skip_layers={outside}: the model has layers 0 to {len(view.layers) - 1}."
            )
        paging = self._paging(tuple(map(self._pages, run.prompt_lengths)))
        return [
            None if index in self.skip_layers or layer.window > 0 else paging for index, layer in enumerate(view.layers)
        ]

    def _paging(self, most: tuple[int, ...]) -> Paging:
        return self.paging(size=self.size, most=most)

    def _pages(self, length: int) -> int:
        share = Fraction(str(self.amount))
        entries = int(share * length) if self.unit == "ratio" else int(share)
        return max(self.least_pages, entries // self.size)
