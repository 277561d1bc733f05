"""Few blocks are read, those whose most attended keys fit the query best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.cache.blocks import Blocks
from kvbench.cache.pages import Paging
from kvbench.strategies.reader.pages import ReadPages


@dataclass(frozen=True, kw_only=True)
class ReadBlocks(ReadPages):
    """Reads the blocks whose representative keys have the largest products with the query, summed over all heads.

    Source: Xiao et al. (InfLLM), arXiv:2402.04617, sec. 3.2; https://github.com/thunlp/InfLLM.
    Deviates: representatives are chosen per KV head by the mean attention of its query heads; the reference repeats
        keys and chooses per query head. A decode step chooses for its one query, where the reference's prompt chooses
        for 512 queries together.

    Args:
        size: entries of a block.
        amount: as of `ReadPages`, of whole blocks.
        unit: what `amount` counts.
        least_pages: blocks read however small the amount is.
        skip_layers: layers that read everything.
        representatives: keys that stand for a block.
    """

    paging: ClassVar[type[Paging]] = Blocks

    representatives: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        super().__post_init__()
        if not 1 <= self.representatives <= self.size:
            raise ValueError(
                f"strategy.reader.representatives must be between 1 and strategy.reader.size={self.size}; got "
                f"{self.representatives}."
            )

    def _paging(self, most: tuple[int, ...]) -> Paging:
        return Blocks(size=self.size, most=most, representatives=self.representatives)
