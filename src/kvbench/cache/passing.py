"""A layer that keeps nothing: every pass reads all tokens from the first one on."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan, grown
from kvbench.cache.store import positions
from kvbench.kernels.attend import attend_causal, attend_prompt
from kvbench.types import RunShape, Step


class PassingLayer(CacheLayer):
    """Attends within a pass to the keys and values of that pass; the first layer keeps the ids that are read again.

    Args:
        plan: what to do.
        run: how long the rows of the batch are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        empty: a tensor [0] on the device of the model.
    """

    def __init__(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, empty: Tensor) -> None:
        super().__init__(plan, run, padding, empty)
        size = (run.batch_size, plan.text_slots(run))
        self.text = torch.zeros(size, dtype=torch.int64, device=empty.device)  # [B, slots]

    def from_the_start(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return all ids so far [B, T], the next ones last, and the positions they are read at, 0 at padding.

        Args:
            ids: of the next tokens [B, t].
        """
        stop = self.seen + ids.shape[1]
        if stop > self.text.shape[1]:
            wider = self.text.new_zeros(len(ids), grown(stop))
            wider[:, : self.seen] = self.text[:, : self.seen]
            self.text = wider
        self.text[:, self.seen : stop] = ids
        return self.text[:, :stop], positions(0, stop, len(ids), self.padding, ids.device).clamp(min=0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        """Attend to the pass itself.

        Args:
            query: of all tokens so far, or of the last ones of them [B, H, t, D], rotated.
            key: of all tokens so far [B, G, T, D], rotated.
            value: the same [B, G, T, D_v].
            scale: factor of the attention logits.
            step: without meaning here.

        Returns:
            The attention output [B, H, t, D_v].
        """
        asked, window = query.shape[2], self.plan.shape.window
        self.seen = key.shape[2]
        if self.padding is None and asked == self.seen and (window == 0 or self.seen <= window):
            return attend_causal(query, key, value, scale)
        at = positions(0, self.seen, len(query), self.padding, query.device)
        return attend_prompt(
            query, key, value, scale, position=at[:, None], query_position=at[:, -asked:], window=window
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the ids, where they are this layer's."""
        return (self.text,)

    def held_positions(self) -> Tensor:
        """Return that no position is held [B, 1, 0]."""
        return torch.empty(len(self.text), 1, 0, dtype=torch.int32, device=self.text.device)

    def numbers_held(self) -> int:
        """Return 0: no keys or values are held."""
        return 0

    def used_bytes(self) -> int:
        """Return the bytes of the ids so far, where they are this layer's."""
        return self.plan.text_bytes(self.run, self.seen)

    def read_bytes(self) -> int:
        """Return the bytes that a decode step reads: all of them."""
        return self.used_bytes()
