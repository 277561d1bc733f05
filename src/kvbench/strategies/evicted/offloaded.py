"""Entries that leave go to a ring in the host's memory, and come back if they mattered more than others that stayed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.offloading import Offloading
from kvbench.cache.placement.rooms import Placed
from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.protocols import Remembering
from kvbench.cache.ring import Form, Ring
from kvbench.cache.slots import Slots
from kvbench.cache.views import Leaving, Merged
from kvbench.cache.writers import Writers
from kvbench.strategies.evicted.summary import Summary
from kvbench.types import LayerShape, RunShape

if TYPE_CHECKING:
    from kvbench.strategies.base import CacheStrategy

_BITS = (16, 8, 4)
_SUMMARY = Summary(mode="mean")


@dataclass(frozen=True, kw_only=True)
class Offloaded:
    """Every kept set has a ring of rows on the host, first in, first out.

    What an entry mattered so far, by the scorer's memory, travels with it and stands still while it is on the host.
    When entries leave, those on the host that mattered more than a threshold come back, the best first, each in place
    of an entry that mattered less, which goes to the ring: as many entries are held as before. The row of an entry that
    is back keeps its place and its codes, so that it is packed once only, however often it comes and goes.

    Source: mkurman (fixed-size-kv-cache), README and code.
    Deviates: an entry comes back only in place of one that mattered less (in the code the two would change places at
        every step), and not in the step it left; positions are those of the text; the ring works without a summary;
        rows are packed by one scale per token and head. Scores and softmax are float32 or wider and rows have the
        model's dtype: there is no autocast.

    Args:
        offload_size: rows of each kept set, those of entries that are back included; fewer where it is known that fewer
            entries can leave.
        summary: whether one entry of the budget stands for everything that fell off the ring.
        bits: of a number of a row that leaves: 16 for rows as they are, 8 (symmetric) or 4 (with a least number).
        restore_every: times entries leave while decoding before some may come back; 0 for never.
        importance_threshold: mean attention above which an entry may come back.
        max_restored: entries of a kept set that come back at once.
        mmap: whether keys and values of the ring lie in a file that is mapped into memory.
        folder: of that file, "" for the system's folder of temporary files; it has no name and ends with the process.
        worker_threads: that pack and write behind the step what has left; 0 to write within the step.
    """

    offload_size: int
    summary: bool
    bits: int
    restore_every: int
    importance_threshold: float
    max_restored: int
    mmap: bool
    folder: str
    worker_threads: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.bits not in _BITS:
            raise ValueError(f"strategy.evicted.bits must be one of {list(_BITS)}; got {self.bits}.")
        for name, least in (("offload_size", 1), ("restore_every", 0), ("max_restored", 1), ("worker_threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"strategy.evicted.{name} must be at least {least}; got {getattr(self, name)}.")
        if self.importance_threshold < 0:
            raise ValueError(
                f"strategy.evicted.importance_threshold must be at least 0; got {self.importance_threshold}."
            )

    # -- as a part that merges ----------------------------------------------------------------------------------

    @property
    def merges(self) -> bool:
        """Whether a summary is kept."""
        return self.summary

    @property
    def weighs(self) -> bool:
        """Whether a summary is kept."""
        return self.summary

    @property
    def num_reserved(self) -> int:
        """The summary."""
        return int(self.summary)

    def state_width(self, shape: LayerShape) -> int:
        """Return the width of the summary's sums and number."""
        return _SUMMARY.state_width(shape) if self.summary else 0

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Put a summary of what does not fit into the ring before what stays."""
        gone = leaving.gone()
        later = gone.flip(2).cumsum(dim=2).flip(2)
        return _SUMMARY.begin(leaving, gone & (later > self.offload_size))

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Do nothing: what falls off the ring is summed up where it falls."""

    # -- as a part that keeps what leaves -----------------------------------------------------------------------

    def open(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, key: Tensor) -> Offloading:
        """Return what keeps the rows of a layer; rows of different lengths are stored apart, without padding."""
        is_pinned = key.device.type == "cuda"
        ring = Ring(self._form(plan, run, key.dtype), self.folder if self.mmap else None, is_pinned=is_pinned)
        return Offloading(self, plan, run, ring, self._writers, _SUMMARY.add if self.summary else None)

    @cached_property
    def _writers(self) -> Writers:
        return Writers(self.worker_threads)

    def placed(self, plan: LayerPlan, run: RunShape, dtype: torch.dtype) -> Placed:
        """Return the bytes of a layer's ring."""
        form = self._form(plan, run, dtype)
        written, beside = form.written_bytes, form.beside_bytes
        return Placed(device=0, host=beside + (0 if self.mmap else written), disk=written if self.mmap else 0)

    def used_bytes(self, plan: LayerPlan, run: RunShape, dtype: torch.dtype, tokens_seen: int) -> int:
        """Return 0: nothing lies on the device beside the slots."""
        return 0

    def _form(self, plan: LayerPlan, run: RunShape, dtype: torch.dtype) -> Form:
        shape, sets = plan.shape, plan.score_heads
        beside = {"score": (score_dtype(dtype), 1)} if plan.keeps_score(run) else {}
        if beside and plan.scorer.memory_bytes > 0:
            beside["memory"] = (torch.uint8, plan.scorer.memory_bytes)
        return Form(
            sets=run.batch_size * sets,
            heads=shape.kv_heads // sets,
            rows=self._rows(plan, run),
            widths=(shape.key_dim, shape.value_dim),
            dtype=dtype,
            packing=self._packing(),
            beside=beside,
        )

    def _rows(self, plan: LayerPlan, run: RunShape) -> int:
        """Return the rows of each ring: those of entries that ever left, of which some may be back."""
        assert plan.budget is not None
        most = plan.budget[0] - plan.num_reserved
        if plan.evicts and run.new_tokens is None:
            return self.offload_size
        tokens = run.prompt_tokens + ((run.new_tokens or 0) if plan.evicts else 0)
        if tokens <= most:
            return 0
        return min(self.offload_size, tokens if plan.evicts and self.restore_every > 0 else tokens - most)

    def _packing(self) -> Quantiser | None:
        if self.bits == max(_BITS):
            return None
        return Quantiser(
            bits=self.bits,
            along="channels",
            group=0,
            symmetric=self.bits == 8,
            levels="integers",
            clip=1.0,
            scales="float16",
        )

    # -- what it goes with --------------------------------------------------------------------------------------

    def refusal(self, made: CacheStrategy) -> str | None:
        """Return why rows cannot leave, or come back, beside the other parts of a strategy, or None."""
        if not made.codec.is_exact:
            return (
                "strategy/evicted=offloaded keeps rows as the model made them and packs those that leave; use "
                "strategy/codec=dense and strategy.evicted.bits."
            )
        if not made.reader.reads_all:
            return "strategy/evicted=offloaded keeps what attention does not read; use strategy/reader=all."
        if made.position.by_rank or made.position.rerotates:
            return (
                "strategy/evicted=offloaded brings entries back to where they were, and this strategy/position moves "
                "them; use strategy/position=original."
            )
        if self.restore_every == 0:
            return None
        if made.trigger.period == 0:
            return (
                "strategy.evicted.restore_every lets entries come back when others leave while decoding; use "
                "strategy/trigger=every_step, or strategy.evicted.restore_every=0."
            )
        if not isinstance(made.scorer, Remembering) or made.scorer.memory_bytes == 0:
            return (
                "strategy.evicted.restore_every needs a scorer that remembers how much an entry mattered; use "
                "strategy/scorer=remembered_attention, or strategy.evicted.restore_every=0."
            )
        return None
