"""A layer that has no entries of its own and attends to those of another layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.cache.store import positions
from kvbench.kernels.attend import attend_causal, attend_prompt
from kvbench.types import RunShape, Step


class BorrowingLayer(CacheLayer):
    """Attends through the store of a layer that comes before it, and stores nothing.

    Args:
        plan: what to do.
        run: how long the rows of the batch are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        empty: a tensor [0] of the dtype and on the device of keys and values.
        donor: layer that stores what this one reads.
    """

    def __init__(
        self, plan: LayerPlan, run: RunShape, padding: Tensor | None, empty: Tensor, donor: CacheLayer
    ) -> None:
        super().__init__(plan, run, padding, empty)
        self.donor = donor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        """Attend to what the donor holds, which has stored this pass already.

        Args:
            query: of all tokens of the pass, or of the last ones of a prompt's [B, H, t, D], rotated.
            key: of the donor in this pass [B, G, T, D], rotated.
            value: of the donor in this pass [B, G, T, D_v].
            scale: factor of the attention logits.
            step: what the engine said of this pass.

        Returns:
            The attention output [B, H, t, D_v].

        Raises:
            ValueError: for a pass over several tokens that would need entries the donor has packed.
        """
        batch, tokens, seen = len(query), key.shape[2], self.seen
        self.seen += tokens
        assert self.donor.seen == self.seen, "the donor comes first"
        whole = seen == 0 and step.phase == "prefill" and step.is_last_chunk
        if whole and self.padding is None and query.shape[2] == tokens:
            return attend_causal(query, key, value, scale)
        at = positions(seen, tokens, batch, self.padding, query.device)
        asking = at[:, -query.shape[2] :]
        if whole:
            return attend_prompt(query, key, value, scale, position=at[:, None], query_position=asking, window=0)
        if tokens == 1 and step.phase == "decode":
            return self.donor.look(query, scale)
        if not self.plan.codec.is_exact:
            raise ValueError(
                "layers that share keys and values read a prompt at once where strategy/codec packs it; set "
                "engine.prefill_chunk=0, or use strategy/codec=dense."
            )
        ((_, store),) = self.donor.stores
        slots = store.slots
        keys, values = slots.keys.read(slots.filled), slots.values.read(slots.filled)
        position = slots.position.narrow(2, 0, slots.filled)
        return attend_prompt(query, keys, values, scale, position=position, query_position=asking, window=0)

    def held_positions(self) -> Tensor:
        """Return the positions the donor holds [B, 1 or G, m], ascending, -1 for none; syncs with the device."""
        return self.donor.held_positions()

    def numbers_held(self) -> int:
        """Return 0: what is read is the donor's."""
        return 0

    def used_bytes(self) -> int:
        """Return 0: what is read is the donor's."""
        return 0

    def read_bytes(self) -> int:
        """Return the bytes that a decode step reads; syncs with the device."""
        return self.donor.read_bytes()

    def snapshot(self) -> Mapping[str, object]:
        """Return what `restore` needs to go back to this point."""
        return {"seen": self.seen}

    def restore(self, snapshot: Mapping[str, object]) -> None:
        """Go back to a snapshot."""
        self.seen = snapshot["seen"]  # type: ignore[assignment]
