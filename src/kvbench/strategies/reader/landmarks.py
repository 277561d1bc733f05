"""Few pages of what has left are read, those whose mean keys the query attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.cache.landmarks import LandmarkPaging
from kvbench.cache.pages import Paging
from kvbench.strategies.reader.pages import ReadPages


@dataclass(frozen=True, kw_only=True)
class ReadLandmarks(ReadPages):
    """Reads the pages of what has left with the largest attention to their mean keys, by any query head of a KV head.

    Source: Sun et al. (ShadowKV), arXiv:2410.21465, sec. 4; https://github.com/bytedance/ShadowKV.
    Deviates: nothing is read that is not there, where the authors' code needs prompts longer than all its budgets.

    Args:
        size: entries of a page.
        amount: as in ReadPages, of what has left.
        unit: what `amount` counts.
        least_pages: pages read however small the amount is.
        skip_layers: layers that read everything.
    """

    paging: ClassVar[type[Paging]] = LandmarkPaging
