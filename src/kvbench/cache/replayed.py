"""A store whose decode steps can be recorded once and replayed: what changes from step to step is on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.clock import Clock
from kvbench.cache.codecs.base import Payload
from kvbench.cache.codecs.opened import OpenPayload
from kvbench.cache.codecs.packed import PackedPayload
from kvbench.cache.plan import LayerPlan
from kvbench.cache.store import Store
from kvbench.kernels.attend import EMPTY
from kvbench.types import RunShape


class ReplayedStore(Store):
    """Reads all its slots in every step, those that are empty hidden, and finds the one to fill on the device.

    Args:
        plan: as of Store.
        run: as of Store.
        padding: as of Store.
        key: as of Store.
        value: as of Store.
        clock: what says how many columns were seen.
    """

    def __init__(
        self, plan: LayerPlan, run: RunShape, padding: Tensor | None, key: Tensor, value: Tensor, clock: Clock
    ) -> None:
        super().__init__(plan, run, padding, key, value)
        self._clock = clock
        self._left = 0  # slots that the prompt has filled

    @property
    def kind(self) -> tuple[bool, ...]:
        """What is done at the end of the next step: whether entries leave, and whether keys and values are packed."""
        leave = self.plan.evicts and (self.seen + 1 - self.run.prompt_tokens) % self.plan.period == 0
        return (leave, *(payload.is_due for payload in self._gathering))

    @property
    def num_filled(self) -> int:
        """Slots in use by at least one row."""
        return min(self._left + self.seen - self.run.prompt_tokens, self.slots.capacity)

    @property
    def _gathering(self) -> list[OpenPayload]:
        return [each for each in (self.slots.keys, self.slots.values) if isinstance(each, OpenPayload)]

    def skip(self) -> None:
        """Count a token whose step was replayed."""
        self._check_room()
        self.seen += 1
        for payload in self._gathering:
            payload.skip()

    def decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Do what `Store.decode` does."""
        self._check_room()
        return super().decode(query, key, value, scale)

    def _check_room(self) -> None:
        assert self.run.new_tokens is not None, "refused before"
        if self.seen >= self.run.prompt_tokens + self.run.new_tokens:
            self._refuse_more(1)

    def _open(self) -> None:
        """Take every slot into use."""
        slots = self.slots
        self._left = slots.filled
        slots.has_holes = slots.has_holes or slots.filled + 1 < slots.capacity
        slots.filled = slots.capacity
        slots.keys, slots.values = map(_opened, (slots.keys, slots.values))

    def _start_evicting(self, queries: Tensor) -> None:
        super()._start_evicting(queries)
        if self._free_slots is not None and not self._is_ragged:
            fresh = self._left + torch.arange(self.plan.period, device=queries.device)
            self._free_slots.copy_(fresh.clamp(max=self.slots.capacity - 1))

    def _position_of(self, column: int) -> Tensor:
        """Return the position of a column [B, 1, 1]."""
        at = self._clock.at(column).expand(self.run.batch_size)[:, None, None]
        return at if self.padding is None else at - self.padding

    def _steps(self, column: int) -> Tensor:
        """Return how many columns lie between the prompt and this one [1]."""
        return self._clock.at(column - self.run.prompt_tokens)

    def _next_slot(self) -> Tensor | None:
        """Return the slot the next entry goes to [B, heads]."""
        steps = self.seen - self.run.prompt_tokens
        if self._free_slots is not None:
            return self._free_slots.index_select(2, self._clock.turn(steps, self.plan.period))[:, :, 0]
        first = self.plan.selector.num_sink if self._is_ring else 0  # slots before it are never written again
        slot = self._clock.turn(steps + self._left - first, self.slots.capacity - first)
        return (slot + first if first > 0 else slot).expand(self.slots.position.shape[:2])

    def _in_slots(self) -> Tensor:
        return super()._in_slots() if self.plan.evicts else self.slots.position.clamp(min=EMPTY)

    def _note(self, queries: Tensor, query: Tensor) -> None:
        """Put the newest query [B, H, 1, D] in the place of the oldest of the latest ones [B, H, W, D]."""
        queries.index_copy_(2, self._clock.turn(self.seen - 1, queries.shape[2]), query)

    def _let_go(self, newest: Tensor | int, scale: float) -> None:
        """Choose the slots that the next entries go to, once those chosen before are filled."""
        steps, slots = self.seen - self.run.prompt_tokens, self.slots
        if self._free_slots is None or steps % self.plan.period:
            return
        self._choose_free(newest, scale)
        if self._budget is None and self.plan.period == 1 and slots.has_holes:  # a slot that was never filled is first
            fresh = (self._steps(self.seen) + self._left).long()
            self._free_slots.copy_(torch.where(fresh < slots.capacity, fresh, self._free_slots))

    def _changing(self) -> tuple[Tensor, ...]:
        """Return what later steps write to, and what says which slots are empty."""
        return self._mine() if self.plan.evicts else (self.slots.position,)


def _opened(payload: Payload) -> Payload:
    """Return what recorded steps read and write in the place of a payload."""
    if isinstance(payload, PackedPayload) and payload.exact.shape[2] > 0:
        return OpenPayload(payload)  # type: ignore[return-value]  # nothing grows, no run of slots is written
    return payload
