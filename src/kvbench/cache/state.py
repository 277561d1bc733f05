"""A layer that keeps no entries but a state of everything it has read, as large after one token as after many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.cache.store import positions
from kvbench.types import RunShape


class StateLayer(CacheLayer):
    """Keeps the states of a recurrent layer, which reads them and says what they are after its tokens.

    Args:
        plan: what to do.
        run: how long the rows of the batch are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        empty: a tensor [0] on the device of the states.
    """

    def __init__(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, empty: Tensor) -> None:
        super().__init__(plan, run, padding, empty)
        self.states = tuple(state.fresh(run.batch_size, empty.device) for state in plan.shape.states)

    def real(self, tokens: int) -> Tensor | None:
        """Return which of the next tokens are no padding [B, T, 1]; None for all."""
        if self.padding is None or self.seen >= self.run.prompt_tokens:
            return None
        at = positions(self.seen, tokens, self.run.batch_size, self.padding, self.padding.device)
        return at[..., None] >= 0

    def keep(self, states: Sequence[Tensor], tokens: int) -> None:
        """Take over the states after so many more tokens."""
        for mine, new in zip(self.states, states, strict=True):
            mine.copy_(new)
        self.seen += tokens

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything the layer holds."""
        return self.states

    def held_positions(self) -> Tensor:
        """Return that no position is held [B, 1, 0]."""
        return torch.empty(self.run.batch_size, 1, 0, dtype=torch.int32, device=self.states[0].device)

    def numbers_held(self) -> int:
        """Return how many numbers the states have."""
        return sum(state.numel() for state in self.states)

    def used_bytes(self) -> int:
        """Return the bytes of the states."""
        return sum(state.nbytes for state in self.states)

    def read_bytes(self) -> int:
        """Return the bytes that a decode step reads: all of them."""
        return self.used_bytes()

    def snapshot(self) -> Mapping[str, object]:
        """Return what `restore` needs to go back to this point."""
        return {"seen": self.seen, "states": [state.clone() for state in self.states]}

    def restore(self, snapshot: Mapping[str, object]) -> None:
        """Go back to a snapshot, in the same storage."""
        self.seen = snapshot["seen"]  # type: ignore[assignment]
        for mine, kept in zip(self.states, snapshot["states"], strict=True):  # type: ignore[call-overload]
            mine.copy_(kept)
