"""What a cache layer is told to do: the parts of a strategy, resolved for one layer and one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import Codec
from kvbench.kernels.column_sums import column_sums
from kvbench.types import LayerShape, RunShape

GROW_SHARE = 4  # a cache of unknown length grows by a quarter
GROW_LEAST = 64  # entries


@dataclass(frozen=True, kw_only=True)
class PromptView:
    """What a scorer may look at while the prompt is read.

    Args:
        layer: index of the layer.
        query: of this pass, or at least as many as the scorer's window [B, H, T, D].
        keys: of the prompt so far [B, G, n, D].
        values: of the prompt so far [B, G, n, D_v].
        position: of the entries [B, 1, n]; -1 at padding.
        query_position: of the queries [B, T]; -1 at padding.
        scale: factor of the attention logits.
        window: tokens a sliding layer sees; 0 where it sees everything.
    """

    layer: int
    query: Tensor
    keys: Tensor
    values: Tensor
    position: Tensor
    query_position: Tensor
    scale: float
    window: int

    def attention_received(self, last: int = 0) -> Tensor:
        """Return the attention each entry receives from the queries [B, G, n], summed over them.

        Args:
            last: count only so many of the latest queries; 0 for all of this pass.
        """
        return column_sums(
            self.query[:, :, -last:],
            self.keys,
            self.scale,
            position=self.position,
            query_position=self.query_position[:, -last:],
            window=self.window,
        )


class Scorer(Protocol):
    """How much an entry matters: higher stays longer."""

    @property
    def per_head(self) -> bool:
        """Whether KV heads are scored apart; otherwise a layer has one score for all."""

    @property
    def is_recency(self) -> bool:
        """Whether the score is the position, so that the next victim is known without a score."""

    @property
    def needs_weights(self) -> bool:
        """Whether `observe` wants the attention weights of every decode step."""

    @property
    def accumulates(self) -> bool:
        """Whether the chunks of a prompt add up to its score; otherwise the last one decides."""

    @property
    def query_window(self) -> int:
        """How many of the prompt's last queries must be at hand; 0 for those of the pass."""

    def prompt(self, view: PromptView) -> Tensor:
        """Return the score of the prompt's entries [B, 1 or G, n]."""

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return the score a new entry [B, G, 1, D] at position [B, 1, 1] starts with [B, 1 or G, 1]."""

    def observe(self, score: Tensor, weights: Tensor) -> None:
        """Update scores [B, 1 or G, m] in place with the attention weights [B, G, H / G, m] of one step."""


class Selector(Protocol):
    """Which entries stay."""

    @property
    def num_sink(self) -> int:
        """First tokens that are never evicted."""

    def recent(self, budget: int) -> int:
        """Return how many of the newest entries a budget protects."""

    def keep(
        self, score: Tensor, position: Tensor, budget: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Tensor, bool]:
        """Choose entries at the end of the prompt.

        Args:
            score: [B, S, n].
            position: [B, 1, n]; -1 at padding.
            budget: entries to keep per row.
            lengths: entries there are per row.

        Returns:
            Indices in order of position [B, S, k], -1 where a row keeps fewer, and whether any is -1.
        """

    def victim(
        self,
        score: Tensor,
        position: Tensor,
        newest: Tensor | int,
        recent: Tensor | int,
        out: Tensor,
        *,
        has_empty: bool,
    ) -> None:
        """Choose the slot to free.

        Args:
            score: [B, S, C].
            position: [B, S, C]; -1 where a slot is empty, which is never chosen.
            newest: position of the newest entry, [B, 1, 1] or one for all.
            recent: how many of the newest entries stay, [B, 1, 1] or one for all.
            out: receives the slots [B, S].
            has_empty: whether slots may be empty.
        """


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer's part of a strategy.

    Args:
        index: of the layer.
        shape: what the layer stores per token.
        codec: how entries are written.
        scorer: how entries are ranked.
        selector: which entries stay.
        budget: entries kept per row, or None to keep all.
        every_step: whether the budget also holds while decoding.
        by_rank: whether the sinks move along, so that distances count kept entries only.
    """

    index: int
    shape: LayerShape
    codec: Codec
    scorer: Scorer
    selector: Selector
    budget: tuple[int, ...] | None
    every_step: bool
    by_rank: bool

    @property
    def evicts(self) -> bool:
        """Whether entries leave while decoding."""
        return self.every_step and self.budget is not None

    @property
    def compresses(self) -> bool:
        """Whether entries may leave at all."""
        return self.budget is not None

    @property
    def score_heads(self) -> int:
        """How many kept sets the layer has: one, or one per KV head."""
        return self.shape.kv_heads if self.compresses and self.scorer.per_head else 1

    def is_ring(self, run: RunShape) -> bool:
        """Whether the next victim is known without a score, and the same in every row."""
        return self.evicts and self.scorer.is_recency and not self.is_ragged(run)

    def is_ragged(self, run: RunShape) -> bool:
        """Whether rows hold different numbers of entries."""
        return len(set(run.prompt_lengths)) > 1 or (self.budget is not None and len(set(self.budget)) > 1)

    def held(self, run: RunShape, tokens_seen: int) -> tuple[int, ...]:
        """Return the entries each row holds after so many columns, padding not counted."""
        rows = [max(0, tokens_seen - pad) for pad in run.padding]
        if self.budget is None:
            return tuple(rows)
        if self.every_step:
            return tuple(map(min, rows, self.budget))
        decoded = max(0, tokens_seen - run.prompt_tokens)
        return tuple(min(row - decoded, most) + decoded for row, most in zip(rows, self.budget, strict=True))

    def capacity(self, run: RunShape) -> int:
        """Return the slots per row and head that are allocated once the prompt is read."""
        kept = max(self.held(run, run.prompt_tokens)) if self.compresses else run.prompt_tokens
        if self.budget is not None and self.every_step:
            longest = max(self.budget) + 1  # the newest entry is attended to before one leaves
            if run.new_tokens is None:
                return longest
            total = max(run.prompt_lengths) + run.new_tokens
            return longest if self.is_ragged(run) else min(longest, total)
        return kept + (grown(kept) - kept if run.new_tokens is None else run.new_tokens)

    def slot_bytes(self, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes of one slot of one row, over all heads, metadata included."""
        shape, heads = self.shape, self.score_heads
        payload = self.codec.entry_bytes(shape.key_dim, dtype) + self.codec.entry_bytes(shape.value_dim, dtype)
        score = heads * score_dtype(dtype).itemsize if self.evicts and not self.is_ring(run) else 0
        return shape.kv_heads * payload + heads * torch.int32.itemsize + score

    def fixed_bytes(self, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes that do not depend on the number of slots."""
        working = 0
        if self.evicts and not self.is_ring(run):  # the slot to fill next; where rows differ, budget and recent entries
            working = run.batch_size * (self.score_heads + 2 * self.is_ragged(run)) * torch.int64.itemsize
        sinks = run.batch_size * self.shape.kv_heads * self.num_moving * self.shape.key_dim * dtype.itemsize
        ranks = run.batch_size * torch.int64.itemsize if self.gives_rank else 0
        return working + sinks + ranks

    @property
    def gives_rank(self) -> bool:
        """Whether this layer's budget says where new tokens are read in a model with learned positions."""
        return self.index == 0 and self.by_rank and self.shape.rotary is None

    @property
    def num_moving(self) -> int:
        """Sinks whose keys are turned anew at every step."""
        return self.selector.num_sink if self.by_rank and self.shape.rotary is not None else 0


def grown(entries: int) -> int:
    """Return the next capacity of a cache whose length nobody knows."""
    return entries + max(GROW_LEAST, entries // GROW_SHARE)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype scores are kept in: float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)


def padding_bytes(run: RunShape) -> int:
    """Return the bytes that say how much padding each row has."""
    return run.batch_size * torch.int32.itemsize if any(run.padding) else 0
