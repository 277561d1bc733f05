"""Entries matter that are seldom paid less than average attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults
from kvbench.strategies.selection.selector import Protected

_BYTE = 8  # bits
_BEYOND_POSITIONS = 2.0**31  # one below-average step outweighs any difference of age


@dataclass(frozen=True, kw_only=True)
class Persistence(ScorerDefaults):
    """Minus the number of steps, among the latest ones, in which an entry got less than an equal share of attention.

    Source: Liu et al. (Scissorhands), arXiv:2305.17118, algorithm 2.
    Deviates: with grouped queries the group's mean weight is compared; an equal share is one over the entries that
        the query sees, the entry of the step included.

    Every entry keeps a ring of bits, one a step, beside its score: what it has lost long ago is forgiven. An entry
    that is younger than the ring cannot have lost more often than it was there.

    Args:
        history: steps that count, the prompt's last queries among them.
    """

    needs_weights: ClassVar[bool] = True

    history: int

    def __post_init__(self) -> None:
        """Refuse histories that mean nothing."""
        if self.history < 1:
            raise ValueError(f"strategy.scorer.history must be at least 1 step; got {self.history}.")

    @property
    def memory_bytes(self) -> int:  # type: ignore[override]
        """Bytes of the ring."""
        return -(-self.history // _BYTE)

    def voters(self, tokens: int) -> int:
        """Return how many queries at the end of the prompt count."""
        return self.history

    def prompt(self, view: PromptView) -> Tensor:
        """Return minus the number of queries that paid less than average [B, G, n]."""
        return -_ones(view.once(self._rings)).to(score_dtype(view.keys.dtype))

    def memory(self, view: PromptView) -> Tensor:
        """Return the rings as the prompt leaves them [B, G, n, memory_bytes]."""
        return view.once(self._rings)

    def _rings(self, view: PromptView) -> Tensor:
        shape = (*view.keys.shape[:3], self.memory_bytes)
        memory = torch.zeros(shape, dtype=torch.uint8, device=view.keys.device)
        slot = self.history - min(self.history, view.query.shape[2])  # the first decode step has slot 0
        for below in self._below(view):
            for first in range(min(_BYTE, below.shape[2])):
                queries = below[:, :, first::_BYTE].transpose(2, 3)  # they have the same bit of neighbouring bytes
                start, bit = divmod(slot + first, _BYTE)
                bytes_ = memory[:, :, : queries.shape[2], start : start + queries.shape[3]]
                bytes_.bitwise_or_(queries.to(torch.uint8) * (1 << bit))
            slot += below.shape[2]
        return memory

    def observe(self, seen: Observation) -> None:
        """Note the newest step in place of the one that is forgotten."""
        assert seen.memory is not None
        held = (seen.position >= 0).sum(dim=-1, keepdim=True)
        below = seen.weights.mean(dim=2) * held < 1
        forgotten = self._note(seen.memory, below, seen.step)
        seen.score.add_(forgotten).sub_(below.to(seen.score.dtype))

    def _below(self, view: PromptView) -> Iterator[Tensor]:
        """Yield which of the first entries got less than an equal share [B, G, t, c], a block of queries at a time."""
        position = view.position[:, :, None]
        for weights, at in view.attention(last=self.history):
            query = at[:, None, :, None]
            among = position[..., : weights.shape[-1]]
            sees = (among >= 0) & (among <= query)
            yield (weights.mean(dim=2) * (query + 1) < 1) & sees

    def _note(self, memory: Tensor, below: Tensor, step: Tensor | int) -> Tensor:
        """Write a step's bits into the ring and return those it takes the place of."""
        slot = step % self.history
        if isinstance(slot, Tensor):
            return _note_at(memory if memory.dim() > below.dim() else memory[..., None], below, slot)
        byte = memory if memory.dim() == below.dim() else memory.select(-1, slot // _BYTE)  # one byte has no dimension
        bit = 1 << slot % _BYTE
        forgotten = byte.bitwise_and(bit).ne(0)
        byte.bitwise_and_(255 - bit).bitwise_or_(below.to(torch.uint8) * bit)
        return forgotten


def _note_at(memory: Tensor, below: Tensor, slot: Tensor) -> Tensor:
    """Do what `Persistence._note` does at a slot [1] that the device knows; memory is [B, G, n, bytes]."""
    which, bit = slot.long() // _BYTE, (1 << slot % _BYTE).to(torch.uint8)
    byte = memory.index_select(-1, which)[..., 0]
    memory.index_copy_(-1, which, (byte & (255 - bit) | below.to(torch.uint8) * bit)[..., None])
    return byte.bitwise_and(bit).ne(0)


def _ones(rings: Tensor) -> Tensor:
    """Return how many bits of each ring [..., bytes] are set."""
    pairs = rings - (rings >> 1 & 0x55)
    fours = (pairs & 0x33) + (pairs >> 2 & 0x33)
    return (fours + (fours >> 4) & 0x0F).sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class OldestFirst(Protected):
    """The first and the most recent entries stay; of entries with the same whole number as a score the oldest leave.

    Args:
        num_sink: first tokens, never evicted.
        num_recent: most recent tokens kept at least.
        recent_share: the same as a fraction of the budget; the larger of the two counts.
    """

    def victims(
        self,
        score: Tensor,
        position: Tensor,
        newest: Tensor | int,
        recent: Tensor | int,
        out: Tensor,
        *,
        has_empty: bool,
    ) -> None:
        """Choose the slots to free; see `kvbench.cache.protocols.Selector`."""
        ranked = score.double() * _BEYOND_POSITIONS + position
        super().victims(ranked, position, newest, recent, out, has_empty=has_empty)
