"""Slots lie in pages that are taken as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.cache.codecs.alone import are_alone
from kvbench.cache.codecs.kernel import WantedOfPages, lacking_kernel
from kvbench.cache.plan import LayerPlan
from kvbench.strategies.layout.separate import Separate
from kvbench.types import ModelView

KEY = "strategy.layout.kernel"


@dataclass(frozen=True, kw_only=True)
class Paged(Separate):
    """Each layer's entries lie in pages of equal size, anywhere in a pool, and a table says whose they are.

    On a CPU attention reads a page with all its heads before the next one, as it lies in memory; what a row takes at
    once are neighbours where the pool has such. Any other order gives the same numbers, and takes longer where pages
    are small.

    Source: Kwon et al. (PagedAttention), arXiv:2309.06180, sec. 4.

    Args:
        page_tokens: slots of a page.
        kernel: as in ReadByKernel, or "flex", torch's FlexAttention, for entries that are kept as the model made them;
            codes have the codec's.
    """

    page_tokens: int
    kernel: WantedOfPages

    def __post_init__(self) -> None:
        """Refuse pages that hold nothing."""
        if self.kernel not in ("auto", "native", "triton", "reference", "flex"):
            raise ValueError(f"{KEY} must be auto, native, triton, reference or flex; got {self.kernel!r}.")
        if self.page_tokens < 1:
            raise ValueError(f"strategy.layout.page_tokens must be at least 1; got {self.page_tokens}.")

    def unsupported(self, plans: Sequence[LayerPlan], view: ModelView) -> str | None:
        """Return why entries cannot lie in pages, or None."""
        sides = [how for plan in plans for how in plan.formats]
        if not all(map(are_alone, sides)):
            return (
                "strategy/layout=paged needs a strategy/codec that writes each entry alone; use "
                "strategy/codec=dense, int8 or fp8, or strategy/layout=separate"
            )
        if self.kernel == "flex" and any(plan.shape.values_are_keys or not plan.codec.is_exact for plan in plans):
            return f"{KEY}=flex reads keys and values as the model made them; use strategy/codec=dense, or {KEY}=auto"
        return lacking_kernel(self.kernel, view, KEY)

    @property
    def says_weights(self) -> bool:
        """Whether what reads entries says how much each weighs, and takes some for more than one token."""
        return self.kernel != "flex"
