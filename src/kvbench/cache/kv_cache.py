"""A cache of one batch, from its prompt on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.cache.barrier import Barrier
from kvbench.cache.borrowing import BorrowingLayer
from kvbench.cache.clock import Clock
from kvbench.cache.context import ContextLayer, ForgettingLayer
from kvbench.cache.doors import Door, Handle, storage_bytes
from kvbench.cache.layer import CacheLayer
from kvbench.cache.pair import Meeting
from kvbench.cache.passing import PassingLayer
from kvbench.cache.placement.mover import mover_of
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.plan import LayerPlan
from kvbench.cache.protocols import Repeater
from kvbench.cache.repeat import repeated_positions, repetitions
from kvbench.cache.state import StateLayer
from kvbench.types import DECODE, PREFILL, PREFILL_CHUNK, ModelView, RunShape, Step


class KVCache(Door):
    """A cache that counts tokens seen apart from entries held.

    The engine calls `begin` before every forward pass. Where nobody does (transformers' own `generate`), the first
    pass is taken for the whole prompt and every later one for decoding.

    Args:
        plans: one per layer.
        view: of the model.
        run: how long the rows of the batch are.
    """

    layers: list[CacheLayer]  # type: ignore[assignment]

    def __init__(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> None:
        """Build empty layers."""
        pads = any(run.padding)
        paddings: dict[torch.device, Tensor | None] = {
            place: torch.tensor(run.padding, dtype=torch.int32, device=place)[:, None, None] if pads else None
            for place in view.devices
        }
        self.padding = paddings[view.device]
        self._paddings = [padding for padding in paddings.values() if padding is not None]
        waiting = [plan for plan in plans if plan.sharer is not None and plan.sharer.scope == "model"]
        barrier = Barrier(len(waiting)) if waiting else None
        meetings = {plan.index: Meeting() for plan in plans if plan.pair is not None and not plan.pair.is_upper}
        meetings |= {index + 1: meeting for index, meeting in meetings.items()}
        self.mover = mover_of(plans, view.device)
        self.clock = Clock(view.device) if view.replays else None
        layers: list[CacheLayer] = []
        for plan in plans:
            place = view.device_of(plan.index)
            padding, empty = paddings[place], torch.empty(0, dtype=view.dtype, device=place)
            if plan.shape.part == "none":
                layers.append(PassingLayer(plan, run, padding, empty))
            elif plan.shape.donor is not None:
                layers.append(BorrowingLayer(plan, run, padding, empty, layers[plan.shape.donor]))
            elif plan.shape.states:
                layers.append(StateLayer(plan, run, padding, empty))
            elif plan.shape.part != "all":
                kind = ContextLayer if plan.shape.part == "prompt" else ForgettingLayer
                layers.append(kind(plan, run, padding, empty))
            else:
                meeting = meetings.get(plan.index)
                layers.append(CacheLayer(plan, run, padding, empty, barrier, meeting, self.mover, self.clock))
        super().__init__(layers=layers)  # type: ignore[arg-type]
        self.view = view
        self.run = run
        self._step: Step | None = None
        self.recorded: dict[Hashable, Callable[[Tensor], Tensor] | None] = {}  # steps by kind, of an engine's
        self.contexts = [layer for layer in layers if isinstance(layer, ContextLayer)]
        self.encoding_bytes = 0  # of what these were made of
        plan = plans[0]
        self._rank: Tensor | None = None  # where new tokens are read once entries have left [B, 1]: learned positions
        self._dropped: Tensor | None = None  # entries whose place the kept ones took [B, 1]
        if plan.rerotates:
            assert plan.budget is not None
            most = [entries - plan.num_reserved for entries in plan.budget]
            dropped = [max(0, length - kept) for length, kept in zip(run.prompt_lengths, most, strict=True)]
            self._dropped = torch.tensor(dropped, device=view.device)[:, None]
        elif plan.gives_rank:
            self._rank = torch.tensor(plan.budget, device=view.device)[:, None]

    def begin(self, step: Step) -> None:
        """Say what the next forward pass is."""
        self._step = step
        if self.clock is not None:
            self.clock.set(self.get_seq_length())

    @property
    def kind(self) -> Hashable:
        """What the layers do in the next step that they do not do in others."""
        return tuple(layer.kind for layer in self.layers)

    def skip(self) -> None:
        """Count a token whose step was replayed."""
        for layer in self.layers:
            layer.skip()

    def prompt_passes(self, tokens: int, chunk: int) -> Iterator[tuple[Step, slice]]:
        """Yield what is to be said before each pass over a prompt, and the columns it reads.

        Args:
            tokens: of the prompt, padding included.
            chunk: tokens of the prompt per pass; 0 for the whole prompt at once.
        """
        for start in range(0, tokens, chunk or tokens):
            stop = min(tokens, start + (chunk or tokens))
            yield PREFILL if stop == tokens else PREFILL_CHUNK, slice(start, stop)
        repeater = self._repeater
        if repeater is not None:
            yield from repetitions(repeater, tokens)

    def keep_context(self, encoding: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Keep what blocks have made of the tokens of this pass, if it reads the prompt.

        Args:
            encoding: of the tokens [B, T, width], which is not kept.
            pairs: per block, keys [B, G, T, D], not rotated, and values of the encoding.
        """
        step = self._step_of(self.contexts[0])
        self.encoding_bytes += encoding.nbytes
        for layer, (key, value) in zip(self.contexts, pairs, strict=True):
            layer.read(key, value, is_last=step.is_last_chunk)

    def from_the_start(self, ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return all ids so far [B, T] and the positions they are read at, where a pass has to read them all again.

        Args:
            ids: of the next tokens [B, t].
        """
        first = self.layers[0]
        return first.from_the_start(ids) if isinstance(first, PassingLayer) else None

    @property
    def reads_prompt(self) -> bool:
        """Whether this pass reads the prompt."""
        return self._step_of(self.layers[-1]).phase == "prefill"

    @property
    def _repeater(self) -> Repeater | None:
        found = (layer.plan.repeater for layer in self.layers)
        return next((each for each in found if each is not None), None)

    def position_ids(self, tokens: int) -> Tensor:
        """Return the positions [B, T] that the next `tokens` columns are to be read at; 0 at padding."""
        seen = self.get_seq_length()
        if self._step is not None and self._step.phase == "repeat":
            return repeated_positions(self._step, tokens, self.run, self.view.device).clamp(min=0)
        first = 0 if self.clock is not None else seen
        at = torch.arange(first, first + tokens, device=self.view.device).expand(self.run.batch_size, -1)
        if self.clock is not None:
            at = at + self.clock.at(seen)
        if self.contexts and seen >= self.run.prompt_tokens:  # the prompt is forgotten
            return at - self.run.prompt_tokens
        if self.padding is not None:
            at = at - self.padding[:, 0]
        if self._rank is not None and seen >= self.run.prompt_tokens:
            at = torch.minimum(at, self._rank)
        if self._dropped is not None and seen >= self.run.prompt_tokens:
            at = at - self._dropped
        return at.clamp(min=0)

    # -- transformers' side -------------------------------------------------------------------------------------

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Handle, Handle]:
        """Return handles; nothing is stored before the attention function runs."""
        layer = self.layers[layer_idx]
        if self._step is None and not layer.seen and layer.plan.repeater is not None:
            raise ValueError(
                "strategy/scorer=repetition has the prompt read again, which only kvbench's own loop does: use "
                "engine=eager, or the passes of KVCache.prompt_passes."
            )
        handle = Handle(layer, key_states, value_states, self._step_of(layer))
        return handle, handle

    def _step_of(self, layer: CacheLayer) -> Step:
        return self._step or (DECODE if layer.seen else PREFILL)

    def num_asking(self, asked: int) -> int:
        """Return of how many of a pass's last tokens a layer must be shown queries; 0 for all of them.

        Args:
            asked: tokens whose logits are asked for; 0 for all.
        """
        plans = [layer.plan for layer in self.layers if layer.plan.shape.window == 0]
        looks = any(plan.compresses or plan.place is not None for plan in plans)
        if asked == 0 or looks or self._step_of(self.layers[-1]).phase != "prefill":
            return 0
        return max(asked, *(plan.num_queries for plan in plans))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen, padding included."""
        return self.layers[layer_idx].seen

    # -- what others ask ----------------------------------------------------------------------------------------

    def allocated_bytes(self) -> int:
        """Return the bytes of every storage on the device: payload, metadata, working rows, buffers."""
        return storage_bytes(self.tensors()) - self.bytes_on("host")

    def context_bytes(self) -> int:
        """Return the bytes of every storage of the layers that keep what is made of the prompt and nothing else."""
        return storage_bytes([t for layer in self.contexts for t in layer.tensors()])

    def bytes_on(self, tier: Literal["host", "disk"]) -> int:
        """Return the bytes that lie elsewhere than on the device."""
        return sum(layer.bytes_on(tier) for layer in self.layers)

    @property
    def is_elsewhere(self) -> bool:
        """Whether entries may lie elsewhere than on the device."""
        return self.mover is not None or any(layer.plan.handing is not None for layer in self.layers)

    def pinned_bytes(self) -> int:
        """Return those of the bytes in the host's memory that are page-locked."""
        homes = () if self.mover is None else self.mover.homes
        here = (t for home in homes for t in home.tensors() if t.device.type == "cpu")
        return sum(t.nbytes for t in here if t.is_pinned())

    def traffic(self) -> Traffic:
        """Return what has moved between the device and elsewhere so far."""
        found = Traffic()
        for layer in self.layers:
            found.add(layer.traffic())
        return found

    def cleanup(self) -> None:
        """Finish what is written behind a step, and let go of memory and files elsewhere; the cache is not used again.

        A cache that nobody refers to any more does the same by itself.
        """
        for keeper in (store.keeper for layer in self.layers for _, store in layer.stores):
            if keeper is not None:
                keeper.close()

    def tensors(self) -> list[Tensor]:
        """Return everything the cache holds."""
        mine = [*self._paddings, *(t for t in (self._rank, self._dropped) if t is not None)]
        moved = () if self.mover is None else self.mover.tensors()
        return [*mine, *moved, *(t for layer in self.layers for t in layer.tensors())]

    def used_bytes(self) -> int:
        """Return the bytes of the occupied slots, metadata included; syncs with the device."""
        return sum(layer.used_bytes() for layer in self.layers)

    def read_bytes(self) -> int:
        """Return the bytes of the cache that a decode step reads; syncs with the device."""
        return sum(layer.read_bytes() for layer in self.layers)

    def entries_held(self) -> list[Tensor]:
        """Return the entries held per layer [B, 1 or G]; syncs with the device."""
        return [layer.entries_held() for layer in self.layers]

    def numbers_held(self) -> int:
        """Return how many numbers the keys and values, or the states, held have; syncs with the device."""
        return sum(layer.numbers_held() for layer in self.layers)

    def shares(self) -> dict[str, float]:
        """Return which share of the numbers held is exact, in outlier channels, and of first tokens with more bits."""
        total, found = 0, dict.fromkeys(("exact", "outlier", "sink"), 0.0)
        for region, store in (each for layer in self.layers for each in layer.stores):
            slots, rows = store.slots, region.run.batch_size * region.plan.shape.kv_heads
            for payload in (slots.keys, slots.values):
                side = None if region.plan.codec.is_exact else payload.entries(slots.filled, slots.position)
                if side is None or isinstance(side, Tensor):
                    counts: tuple[float, ...] = (store.num_filled, 0, 0)
                else:
                    counts = (side.exact, side.outlier_entries, side.sink_entries)
                found = {name: found[name] + rows * count for name, count in zip(found, counts, strict=True)}
                total += rows * store.num_filled
        return {f"{name}_share": count / max(1, total) for name, count in found.items()}

    def page_utilisation(self) -> float | None:
        """Return which share of the slots of all pages taken holds entries; None where there are no pages."""
        stores = [store for layer in self.layers for _, store in layer.stores]
        paged = [(store, table) for store in stores if (table := store.slots.table) is not None]
        taken = sum(table.slots_taken for _, table in paged)
        return sum(sum(store.occupied()) for store, _ in paged) / taken if taken else None

    def snapshot(self) -> list[Any]:
        """Return what `restore` needs to go back to this point."""
        return [layer.snapshot() for layer in self.layers]

    def restore(self, snapshot: list[Any]) -> None:
        """Go back to a snapshot, in the same storage."""
        for layer, mine in zip(self.layers, snapshot, strict=True):
            layer.restore(mine)
