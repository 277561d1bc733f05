"""Entries matter by how much the model needs them to read the prompt again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults
from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class Repetition(ScorerDefaults):
    """The most attention an entry is paid, by any query of its group, while its part of the prompt is read again.

    Behind the prompt, each chunk of it is read once more, with a few tokens before it; weights are those among the
    first tokens, the chunk and its repetition.

    Source: Kim et al. (KVzip), arXiv:2505.23416, sec. 3; snu-mllab/KVzip.
    Deviates: no instruction to repeat stands before a chunk, as no tokenizer reaches a cache; chunks are counted from
        the prompt's end, so that rows of a batch are cut where they would be alone; queries of the lead do not vote.

    Args:
        chunk: tokens read again at a time.
        lead: tokens before a chunk that are read again with it.
        num_sink: first tokens that take their part of the weights of every chunk.
    """

    chunk: int
    lead: int
    num_sink: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.chunk < 1 or self.lead < 0 or self.num_sink < 0:
            raise ValueError(
                f"strategy.scorer needs chunk >= 1, lead >= 0 and num_sink >= 0; got chunk={self.chunk}, "
                f"lead={self.lead}, num_sink={self.num_sink}."
            )

    def cannot_repeat(self, view: ModelView, run: RunShape) -> str | None:
        """Return why this model cannot read these prompts again, or None."""
        if any(layer.window > 0 for layer in view.layers):
            return (
                "strategy/scorer=repetition reads the prompt again behind itself, and layers with a sliding window "
                "have let go of it by then; use another strategy/scorer"
            )
        longest = max(run.prompt_lengths)
        last = longest + min(longest, self.chunk + self.lead)
        if last > view.max_positions:
            return (
                f"strategy/scorer=repetition reads up to position {last}, and the model has {view.max_positions}; "
                f"lower strategy.scorer.chunk or the prompt's length"
            )
        return None

    def prompt(self, view: PromptView) -> Tensor:
        """Refuse: nothing is known before the repetition."""
        raise ValueError(
            "strategy/scorer=repetition has passes of its own and cannot be another scorer's base; use it as "
            "strategy/scorer itself."
        )

    def repeated(self, view: PromptView, columns: slice) -> Tensor:
        """Return the most attention each of the columns is paid [B, G, c]."""
        own, width = view.query.shape[2], columns.stop - columns.start
        position, entries = view.position, view.keys.shape[2]
        first = int((position[:, 0, : entries - own] < self.num_sink).sum(dim=-1).max())  # padding included
        sinks = slice(0, min(first, columns.start))
        parts = (sinks, columns, slice(entries - own, entries))
        keys = torch.cat([view.keys[:, :, part] for part in parts], dim=2)
        at = torch.cat([position[:, :, part] for part in parts], dim=2)
        at[:, :, : sinks.stop].masked_fill_(at[:, :, : sinks.stop] >= self.num_sink, -1)
        voters = view.query_position.clone()
        voters[:, : own - width] = -1
        most = keys.new_zeros(keys.shape[:3], dtype=score_dtype(keys.dtype))
        narrow = replace(view, keys=keys, position=at, query_position=voters)
        for weights, _ in narrow.attention():
            sees = most[..., : weights.shape[-1]]
            torch.maximum(sees, weights.amax(dim=(2, 3)), out=sees)
        return most[:, :, sinks.stop : sinks.stop + width]
