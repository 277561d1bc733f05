"""One layer of a cache: the one hot path, in the order things happen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, PromptView, grown, score_dtype
from kvbench.cache.rotary import turn
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import attend_causal, attend_one, attend_prompt
from kvbench.types import RunShape, Step


class CacheLayer:
    """Stores the entries of one layer, attends to them, and lets go of those the plan gives up.

    Args:
        plan: what to do.
        run: how long the rows of the batch are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        empty: a tensor [0] of the dtype and on the device of keys and values.
    """

    def __init__(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, empty: Tensor) -> None:
        self.plan = plan
        self.run = run
        self.padding = padding
        self.seen = 0  # columns that passed through, padding included
        self.slots: Slots | None = None
        self._is_ring = plan.is_ring(run)
        self._is_ragged = plan.is_ragged(run)
        self._free: int | Tensor | None = None  # the slot the next entry goes to; None while there is room
        self._free_slots: Tensor | None = None  # where `_free` is kept [B, heads], in the same storage at every step
        self._budget: Tensor | None = None  # [B, 1, 1], where rows differ
        self._recent: Tensor | int = 0  # newest entries that stay, [B, 1, 1] where rows differ
        self._sinks: Tensor | None = None  # keys of the sinks as they were made [B, G, num_sink, D]
        self._prompt_score: Tensor | None = None
        self._last_queries: Tensor | None = None
        if not plan.compresses:  # allocated before any prompt is read, so that nothing passing lies between the layers
            shape = plan.shape
            sizes = [(run.batch_size, shape.kv_heads, 0, dim) for dim in (shape.key_dim, shape.value_dim)]
            key, value = (empty.new_empty(size) for size in sizes)
            self.slots = self._new_slots(key, value, plan.capacity(run), with_score=False, heads=1)

    # -- the hot path -------------------------------------------------------------------------------------------

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        """Store the new entries, attend, observe, evict.

        Args:
            query: [B, H, T, D], rotated.
            key: [B, G, T, D], rotated.
            value: [B, G, T, D_v].
            scale: factor of the attention logits.
            step: what the engine said of this pass.

        Returns:
            The attention output [B, H, T, D_v].
        """
        tokens = query.shape[2]
        if step.phase == "prefill":
            out = self._prefill(query, key, value, scale, step.is_last_chunk)
        elif tokens == 1:
            out = self._decode(query, key, value, scale)
        elif self.plan.evicts:  # each token must see what the one before it left
            parts = [t.split(1, dim=2) for t in (query, key, value)]
            return torch.cat([self.attend(q, k, v, scale, step) for q, k, v in zip(*parts, strict=True)], dim=2)
        else:
            out = self._append(query, key, value, scale)
        self.seen += tokens
        return out

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        slots, plan = self._stored(), self.plan
        position = self.seen if self.padding is None else self.seen - self.padding
        score = None
        if slots.score is not None:
            score = plan.scorer.entry(key, self._as_tensor(position, key), plan.index)
        if self._free is None:
            self._make_room(1)
            slots.append(key, value, position, score)
        elif isinstance(self._free, int):
            slots.put(self._free, key, value, position, None)
        else:
            assert score is not None
            slots.scatter(self._free, key, value, position, score)
        if plan.num_moving > 0:
            self._move_sinks()
        observes = plan.evicts and plan.scorer.needs_weights
        out, weights = attend_one(query, slots.tiles(), scale, with_weights=observes)
        if plan.evicts:
            if observes:
                assert weights is not None
                assert slots.score is not None
                plan.scorer.observe(slots.score.narrow(2, 0, slots.filled), weights[0])
            self._choose_free(position)
        return out

    def _choose_free(self, newest: Tensor | int) -> None:
        slots, plan = self._stored(), self.plan
        assert plan.budget is not None
        if slots.filled <= max(plan.budget) and not self._is_ragged:
            return
        if self._is_ring:
            first = plan.selector.num_sink
            last = self._free if isinstance(self._free, int) else slots.filled - 1
            self._free = first if last + 1 >= slots.filled else last + 1
            return
        assert self._free_slots is not None
        assert slots.score is not None
        plan.selector.victim(
            slots.score, slots.position, newest, self._recent, self._free_slots, has_empty=self._is_ragged
        )
        if self._budget is not None:
            held = (slots.position >= 0).sum(dim=-1)
            empty = slots.position.argmin(dim=-1)
            self._free_slots.copy_(torch.where(held > self._budget[:, :, 0], self._free_slots, empty))
            slots.position.scatter_(2, self._free_slots[:, :, None], -1)
        self._free = self._free_slots

    def _append(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Several tokens at once on top of what is held, where nothing leaves."""
        slots = self._stored()
        at = self._positions(query.shape[2], query.device)
        self._make_room(query.shape[2])
        slots.append(key, value, at[:, None])
        tile = slots.tiles()[0]
        return attend_prompt(
            query,
            tile.keys,
            tile.values,
            scale,
            position=slots.position.narrow(2, 0, slots.filled),
            query_position=at,
            window=self.plan.shape.window,
        )

    # -- the prompt ---------------------------------------------------------------------------------------------

    def _prefill(self, query: Tensor, key: Tensor, value: Tensor, scale: float, is_last: bool) -> Tensor:
        tokens, window = query.shape[2], self.plan.shape.window
        self._check_prompt(len(query), self.seen + tokens, is_last)
        at = self._positions(tokens, query.device)
        is_whole = self.seen == 0 and is_last
        if is_whole:
            keys, values, position = key, value, at[:, None]
        else:
            if self.slots is None:
                self.slots = self._new_slots(key, value, self.run.prompt_tokens, with_score=False, heads=1)
            self._make_room(tokens)
            self.slots.append(key, value, at[:, None])
            keys, values = self.slots.keys.read(self.slots.filled), self.slots.values.read(self.slots.filled)
            position = self.slots.position.narrow(2, 0, self.slots.filled)
        if is_whole and self.padding is None and (window == 0 or tokens <= window):
            out = attend_causal(query, keys, values, scale)
        else:
            out = attend_prompt(query, keys, values, scale, position=position, query_position=at, window=window)
        if self.plan.compresses:
            self._score_prompt(query, keys, values, position, at, scale, is_last)
        if is_last:
            self._settle(keys, values, position)
        return out

    def _score_prompt(
        self, query: Tensor, keys: Tensor, values: Tensor, position: Tensor, at: Tensor, scale: float, is_last: bool
    ) -> None:
        scorer, tokens = self.plan.scorer, query.shape[2]
        if scorer.query_window > 0:
            earlier = [] if self._last_queries is None else [self._last_queries]
            query = torch.cat([*earlier, query], dim=2)[:, :, -scorer.query_window :]
            at = self._positions(query.shape[2], query.device, stop=self.seen + tokens)
            self._last_queries = None if is_last else query.clone()
        if not (scorer.accumulates or is_last):
            return
        view = PromptView(
            layer=self.plan.index,
            query=query,
            keys=keys,
            values=values,
            position=position,
            query_position=at,
            scale=scale,
            window=self.plan.shape.window,
        )
        score = scorer.prompt(view)
        if self._prompt_score is not None:
            score = score + torch.nn.functional.pad(self._prompt_score, (0, tokens))
        self._prompt_score = score

    def _settle(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """Leave the prompt in its final storage and free everything else."""
        plan, run = self.plan, self.run
        if not plan.compresses:
            slots = self._stored()
            if slots.filled == 0:
                slots.append(keys, values, position)
            slots.has_holes = self.padding is not None
            return
        score, self._prompt_score = self._prompt_score, None
        assert plan.budget is not None
        assert score is not None
        index, has_holes = plan.selector.keep(score, position, plan.budget, run.prompt_lengths)
        slots = self._new_slots(keys, values, plan.capacity(run), with_score=True, heads=plan.score_heads)
        at = index.clamp(min=0)
        kept_position = position.expand(-1, index.shape[1], -1).gather(2, at).masked_fill(index < 0, -1)
        kept_score = None if slots.score is None else score.expand(-1, index.shape[1], -1).gather(2, at)
        slots.append(_take(keys, at), _take(values, at), kept_position, kept_score)
        slots.has_holes = has_holes
        self.slots = slots
        if plan.evicts:
            self._start_evicting(slots)
        if plan.num_moving > 0:
            self._sinks = slots.keys.read(slots.filled)[:, :, : plan.num_moving].clone()

    def _start_evicting(self, slots: Slots) -> None:
        budget, device = self.plan.budget, slots.position.device
        assert budget is not None
        if self._is_ring:
            return
        recent = [self.plan.selector.recent(entries) for entries in budget]
        self._recent = recent[0]
        self._free_slots = torch.zeros(slots.position.shape[:2], dtype=torch.int64, device=device)
        if self._is_ragged:  # every slot is open from the start, each row fills its own
            self._budget, self._recent = (torch.tensor(rows, device=device)[:, None, None] for rows in (budget, recent))
            slots.filled, slots.has_holes = slots.capacity, True
            self._free_slots.copy_(slots.position.argmin(dim=-1))
            self._free = self._free_slots

    def _check_prompt(self, batch: int, tokens: int, is_last: bool) -> None:
        run = self.run
        if batch != run.batch_size or tokens > run.prompt_tokens or (is_last and tokens < run.prompt_tokens):
            raise ValueError(
                f"this cache was built for prompts of {run.batch_size} x {run.prompt_tokens} tokens; got {batch} x "
                f"{tokens}. Build it with the RunShape of the batch."
            )

    # -- small things -------------------------------------------------------------------------------------------

    def _new_slots(self, key: Tensor, value: Tensor, capacity: int, *, with_score: bool, heads: int) -> Slots:
        keeps_score = with_score and self.plan.evicts and not self._is_ring
        dtype = score_dtype(key.dtype) if keeps_score else None
        return Slots(self.plan.codec, key, value, capacity, heads=heads, score_dtype=dtype)

    def _stored(self) -> Slots:
        assert self.slots is not None, "decode before prefill"
        return self.slots

    def _make_room(self, tokens: int) -> None:
        slots = self._stored()
        if slots.filled + tokens <= slots.capacity:
            return
        if self.run.new_tokens is not None:
            raise ValueError(
                f"this cache was built for {self.run.prompt_tokens} prompt tokens and {self.run.new_tokens} new ones; "
                f"token {self.seen + tokens} does not fit. Build it with more new_tokens."
            )
        slots.grow(max(grown(slots.filled), slots.filled + tokens))

    def _positions(self, tokens: int, device: torch.device, stop: int | None = None) -> Tensor:
        """Return the positions [B, T] of the T columns up to `stop`, -1 at padding."""
        stop = self.seen + tokens if stop is None else stop
        at = torch.arange(stop - tokens, stop, device=device, dtype=torch.int32).expand(self.run.batch_size, -1)
        return at if self.padding is None else (at - self.padding[:, 0]).clamp(min=-1)

    def _as_tensor(self, position: Tensor | int, like: Tensor) -> Tensor:
        if isinstance(position, Tensor):
            return position
        return torch.full((like.shape[0], 1, 1), position, dtype=torch.int32, device=like.device)

    def _move_sinks(self) -> None:
        """Turn the sinks' keys by as many positions as have been dropped between them and the rest."""
        assert self._sinks is not None
        assert self.plan.shape.rotary is not None
        shift = self._dropped()
        if not isinstance(shift, int) or shift > 0:
            self._stored().keys.write(0, turn(self._sinks, shift, self.plan.shape.rotary))

    def _dropped(self) -> Tensor | int:
        """Return how many tokens lie between the sinks and the rest, [B] where rows differ."""
        if self._budget is None:
            assert self.plan.budget is not None
            return max(0, self.seen - self.plan.budget[0])
        padding = 0 if self.padding is None else self.padding
        return (self.seen - padding - self._budget).clamp(min=0)[:, 0, 0]

    # -- what others ask ----------------------------------------------------------------------------------------

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything the layer holds."""
        mine = [self._sinks, self._free_slots, self._budget, self._recent if isinstance(self._recent, Tensor) else None]
        return (*(() if self.slots is None else self.slots.tensors()), *(t for t in mine if t is not None))

    def held_positions(self) -> Tensor:
        """Return the positions held [B, 1 or G, m], ascending, -1 for none; syncs with the device."""
        slots = self._stored()
        position = slots.position.narrow(2, 0, slots.filled).clone()
        if isinstance(self._free, int):
            position[:, :, self._free] = -1
        elif isinstance(self._free, Tensor):
            position.scatter_(2, self._free[:, :, None], -1)
        return position.sort(dim=-1).values

    def snapshot(self) -> Mapping[str, object]:
        """Return what `restore` needs to go back to this point."""
        slots = self._stored()
        tensors = self.tensors() if self.plan.evicts else ()
        return {
            "seen": self.seen,
            "filled": slots.filled,
            "free": self._free,
            "tensors": tuple(t.clone() for t in tensors),
        }

    def restore(self, snapshot: Mapping[str, object]) -> None:
        """Go back to a snapshot, in the same storage."""
        self.seen = snapshot["seen"]  # type: ignore[assignment]
        self._stored().filled = snapshot["filled"]  # type: ignore[assignment]
        self._free = snapshot["free"]  # type: ignore[assignment]
        kept: tuple[Tensor, ...] = snapshot["tensors"]  # type: ignore[assignment]
        if kept:
            for mine, old in zip(self.tensors(), kept, strict=True):
                mine.copy_(old)


def _take(entries: Tensor, index: Tensor) -> Tensor:
    """Gather entries [B, G, n, D] at index [B, 1 or G, k] into new storage."""
    index = index.expand(-1, entries.shape[1], -1)[..., None].expand(-1, -1, -1, entries.shape[3])
    return entries.gather(2, index)
