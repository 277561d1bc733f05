"""What the cache shows the parts of a strategy: a prompt, a step, entries that leave, layers that share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from kvbench.kernels.column_sums import attention_blocks, column_sums
from kvbench.types import LayerShape

if TYPE_CHECKING:
    from kvbench.cache.plan import LayerPlan

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PromptView:
    """What a scorer may look at: the entries so far and the queries that vote on them.

    Args:
        layer: index of the layer.
        shape: what the layer stores per token, its rotation and its output projection.
        query: of this pass, or at least as many as the scorer's voters [B, H, T, D].
        keys: of the entries [B, G, n, D].
        values: of the entries [B, G, n, D_v].
        position: of the entries [B, 1 or G, n]; -1 where there is none.
        query_position: of the queries [B, T]; -1 at padding.
        scale: factor of the attention logits.
        budget: entries that will be kept of each row, the mean over heads where these differ.
        similarity: mean cosine over the prompt between hidden states before and after attention, the residual stream
            included [B]; None where nobody noted them (`CacheLayer.hidden`).
    """

    layer: int
    shape: LayerShape
    query: Tensor
    keys: Tensor
    values: Tensor
    position: Tensor
    query_position: Tensor
    scale: float
    budget: tuple[int, ...]
    similarity: Tensor | None = None
    _found: dict[Callable[..., Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def attention(self, last: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield attention weights a block of queries at a time, never a [T, n] matrix of a long prompt.

        Args:
            last: only so many of the latest queries; 0 for all of this pass.

        Yields:
            Weights [B, G, H / G, t, c] in float32 or wider, 0 for a padding query, of the first c entries: a block
                that is followed by others sees no more; and the queries' positions [B, t].
        """
        return self._ask(attention_blocks, last)

    def attention_received(self, last: int = 0) -> Tensor:
        """Return the attention each entry receives from the queries [B, G, n], summed over them.

        Args:
            last: count only so many of the latest queries; 0 for all of this pass.
        """
        return self._ask(column_sums, last) if last > 0 else self.once(_received)

    def once(self, find: Callable[[PromptView], T]) -> T:
        """Return what scores, budgets and memories may all ask for, found when the first of them does."""
        if find not in self._found:
            self._found[find] = find(self)
        found: T = self._found[find]
        return found

    def output(self, part: str) -> Tensor:
        """Return the layer's output projection [H, D_v, hidden].

        Args:
            part: of a strategy that needs it.

        Raises:
            ValueError: if it is not known.
        """
        if self.shape.output is None:
            raise ValueError(
                f"{part} needs the output projection of every attention layer, and this model's was not found; use "
                f"another {part.partition('=')[0]}."
            )
        return self.shape.output

    def _ask(self, kernel: Callable[..., T], last: int) -> T:
        return kernel(
            self.query[:, :, -last:],
            self.keys,
            self.scale,
            position=self.position,
            query_position=self.query_position[:, -last:],
            window=self.shape.window,
        )


def _received(view: PromptView) -> Tensor:
    """Return the attention each entry receives from all queries: as long a computation as attention itself."""
    return view._ask(column_sums, 0)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One decode step as a scorer sees it: slots, of which it updates the scores.

    Args:
        score: of the slots [B, 1 or G, m], to be updated in place.
        weights: attention of the newest query [B, G, H / G, m].
        position: of the entries [B, 1 or G, m]; -1 where a slot is empty.
        memory: bytes the scorer keeps beside each score [B, 1 or G, m, memory_bytes], to be updated in place.
        step: decode steps before this one, [1] where steps are recorded.
        layer: index of the layer.
    """

    score: Tensor
    weights: Tensor
    position: Tensor
    memory: Tensor | None
    step: Tensor | int
    layer: int


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """A prompt of which some entries stay.

    Args:
        keys: of the prompt [B, G, n, D].
        values: of the prompt [B, G, n, D_v].
        position: [B, 1 or S, n]; -1 at padding.
        score: [B, S, n].
        index: of the entries that stay, in order of position [B, S, k]; -1 where a row keeps fewer.
        layer: index of the layer.
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    score: Tensor
    index: Tensor
    layer: int

    def gone(self) -> Tensor:
        """Return which entries leave [B, S, n]; padding does not, it never was there."""
        columns = self.keys.shape[2]
        stays = self.index.new_zeros((*self.index.shape[:2], columns + 1)).bool()
        stays.scatter_(2, self.index.masked_fill(self.index < 0, columns), True)  # nothing stays of the one behind
        return ~stays[..., :columns] & (self.position >= 0)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What is stored at the end of a prompt.

    Args:
        keys: [B, G, k, D].
        values: [B, G, k, D_v].
        log_weight: log of how many tokens each entry stands for [B, S, k]; None for one each.
        state: what is to be remembered [B, G, state_width]; None to leave it as it is.
    """

    keys: Tensor
    values: Tensor
    log_weight: Tensor | None = None
    state: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A layer that has read its prompt and waits to be told how much it may keep.

    Args:
        plan: the layer's, whose budget is the mean over heads and, with scope "model", over layers.
        score: [B, S, n].
        position: [B, 1, n]; -1 at padding.
        statistic: what the sharer noted of the layer.
        lengths: entries there are per row.
    """

    plan: LayerPlan
    score: Tensor
    position: Tensor
    statistic: Tensor | None
    lengths: tuple[int, ...]
