"""What a layer keeps once the prompt is read: entries in slots, attended to, scored and let go."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Asked
from kvbench.cache.pages import Pages
from kvbench.cache.plan import LayerPlan, grown, score_dtype
from kvbench.cache.protocols import Keeper, Reading
from kvbench.cache.rotary import Turning, turn
from kvbench.cache.slots import Slots
from kvbench.cache.views import Leaving, Observation, PromptView
from kvbench.kernels.attend import EMPTY, SUMMARY, attend_one, attend_prompt, attend_runs
from kvbench.types import RunShape

READ_AT_ONCE = 256  # packed entries of a prompt that exist as numbers while a piece of it attends to them


class Store:
    """Holds entries of some rows and heads of one layer.

    Args:
        plan: what to do, for these heads.
        run: how long these rows are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        key: an example [B, G, T, D].
        value: an example [B, G, T, D_v].
        prompt: the prompt, where it is kept elsewhere.
    """

    def __init__(
        self,
        plan: LayerPlan,
        run: RunShape,
        padding: Tensor | None,
        key: Tensor,
        value: Tensor,
        prompt: Reading | None = None,
    ) -> None:
        self.plan, self.run, self.padding = plan, run, padding
        self.seen = 0  # columns of these rows that passed through, padding included
        self._is_ring = plan.is_ring(run)
        self._is_ragged = plan.is_ragged(run)
        self._free: int | Tensor | None = None  # the slot the next entry goes to; None while there is room
        self._spare = 0  # how many of `_free_slots` are still to be filled
        self._free_slots: Tensor | None = None  # slots that were freed [B, heads, period], always in the same storage
        self._budget: Tensor | None = None  # [B, 1, 1], where rows differ
        self._recent: Tensor | int = 0  # newest entries that stay, [B, 1, 1] where rows differ
        self._sinks: Turning | None = None  # keys of the sinks as they were made [B, G, num_sink, D]
        self._queries: Tensor | None = None  # the latest ones, where entries are scored again [B, H, W, D]
        self._keeper = None if plan.handing is None else plan.handing.open(plan, run, padding, key)
        self._reading = prompt or self._keeper
        if self._reading is None and plan.paging is not None:
            self._reading = Pages(plan, run, padding, key)
        if prompt is not None:
            self.seen = run.prompt_tokens
        self.slots = self._room(key, value)

    def _room(self, key: Tensor, value: Tensor) -> Slots:
        """Return room for what stays of a prompt and what follows it."""
        plan, run = self.plan, self.run
        dtype, beside = score_dtype(key.dtype), {}
        if plan.keeps_score(run):
            beside["score"] = (dtype, 1)
            if plan.scorer.memory_bytes > 0:
                beside["memory"] = (torch.uint8, plan.scorer.memory_bytes)
        if plan.compresses and plan.evicted.weighs:
            beside["log_weight"] = (dtype, 1)
        state = (dtype, plan.state_width) if plan.state_width > 0 else None
        return Slots(
            plan.codec,
            key,
            value,
            plan.capacity(run),
            heads=plan.score_heads,
            beside=beside,
            state=state,
            values_are_keys=plan.shape.values_are_keys,
            paged=plan.paged(run, key),
        )

    # -- the end of the prompt ----------------------------------------------------------------------------------

    def fill(
        self,
        keys: Tensor,
        values: Tensor,
        position: Tensor,
        score: Tensor | None,
        queries: Tensor,
        memory: Tensor | None = None,
    ) -> None:
        """Take over a prompt, and keep as much of it as the plan says.

        Args:
            keys: [B, G, n, D].
            values: [B, G, n, D_v].
            position: [B, 1, n]; -1 at padding.
            score: [B, 1 or heads, n]; None where everything stays.
            queries: the last ones of the prompt [B, H, T, D].
            memory: bytes the scorer keeps beside each score [B, 1 or heads, n, width]; None where they begin with 0.
        """
        plan, slots = self.plan, self.slots
        self.seen = self.run.prompt_tokens
        if isinstance(slots.keys, Asked):
            slots.keys.ask(queries[:, :, -self.run.prompt_tokens :])  # those before are padding
        if plan.budget is None:
            if slots.filled == 0:
                slots.append(keys, values, position)
            self.end_prompt()
            return
        assert score is not None
        score = score.expand(-1, plan.score_heads, -1)
        reserved = self.plan.num_reserved
        budget = tuple(most - reserved for most in self._kept())
        index, has_holes = plan.selector.keep(score, position, budget, self.run.prompt_lengths)
        at = index.clamp(min=0)
        beside = {"score": score.gather(2, at)} if slots.score is not None else {}
        leaving = Leaving(keys=keys, values=values, position=position, score=score, index=index, layer=plan.index)
        if self._keeper is not None:
            self._keeper.take_prompt(leaving)
        if plan.evicted.merges:
            merged = plan.evicted.at_prompt_end(leaving)
            kept_keys, kept_values = merged.keys, merged.values
            if merged.log_weight is not None:
                beside["log_weight"] = merged.log_weight
            if merged.state is not None:
                assert slots.state is not None
                slots.state.copy_(merged.state)
        else:
            kept_keys, kept_values = take(keys, at), take(values, at)
        kept_position = position.expand(-1, index.shape[1], -1).gather(2, at).masked_fill(index < 0, EMPTY)
        if reserved > 0:
            kept_position = torch.nn.functional.pad(kept_position, (reserved, 0), value=SUMMARY)
            beside = {
                name: row if name == "log_weight" else torch.nn.functional.pad(row, (reserved, 0))
                for name, row in beside.items()
            }
        if "memory" in slots.beside and memory is not None:  # a single byte has no dimension of its own
            beside["memory"] = torch.nn.functional.pad(take(memory, at), (0, 0, reserved, 0)).squeeze(-1)
        if plan.rerotates:
            kept_keys = self._in_rank(kept_keys, kept_position)
        slots.append(kept_keys, kept_values, kept_position, beside)
        slots.has_holes = has_holes
        self._open()
        if plan.evicts:
            self._start_evicting(queries)
        if plan.num_moving > 0:
            assert plan.shape.rotary is not None
            self._sinks = Turning(kept_keys[:, :, : plan.num_moving].clone(), plan.shape.rotary)
        if self._reading is not None:
            self._reading.start(slots)

    def end_prompt(self) -> None:
        """Go over to decoding, where all of a prompt stays."""
        self.seen = self.run.prompt_tokens
        self.slots.has_holes = self.padding is not None
        self._open()
        if self._reading is not None:
            self._reading.start(self.slots)

    def read_on(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention of a piece of a prompt, or of its last tokens, to what is held and to itself."""
        slots, window = self.slots, self.plan.shape.window
        at = positions(slots.filled, key.shape[2], len(key), self.padding, key.device)
        sees_all = self.padding is None and window == 0  # that came before it
        held = slots.runs(READ_AT_ONCE)
        before = ((keys, values, None if sees_all else position) for keys, values, position in held)
        return attend_runs(
            query,
            chain(before, [(key, value, at[:, None])]),
            scale,
            query_position=at[:, -query.shape[2] :],
            window=window,
        )

    def take_in(self, key: Tensor, value: Tensor) -> None:
        """Pack a piece of a prompt."""
        slots = self.slots
        at = positions(slots.filled, key.shape[2], len(key), self.padding, key.device)
        slots.append(key, value, at[:, None])
        slots.settle()

    def _open(self) -> None:
        """Do nothing: slots are read once they are filled."""

    def _in_rank(self, keys: Tensor, position: Tensor) -> Tensor:
        """Turn keys [B, G, k, D] at position [B, 1 or G, k] to the positions they have among themselves."""
        assert self.plan.shape.rotary is not None
        rank = torch.arange(position.shape[2], device=position.device) - self.plan.num_reserved
        return turn(keys, (rank - position).masked_fill(position < 0, 0), self.plan.shape.rotary)

    def _kept(self) -> tuple[int, ...]:
        assert self.plan.budget is not None
        return self.plan.budget

    def _start_evicting(self, queries: Tensor) -> None:
        plan, slots, budget = self.plan, self.slots, self._kept()
        if self._is_ring:
            return
        device = slots.position.device
        recent = [plan.selector.recent(entries - plan.num_reserved) for entries in budget]
        self._recent = recent[0]
        self._free_slots = torch.zeros((*slots.position.shape[:2], plan.period), dtype=torch.int64, device=device)
        if self._is_ragged:  # every slot is open from the start, each row fills its own
            self._budget, self._recent = (torch.tensor(rows, device=device)[:, None, None] for rows in (budget, recent))
            slots.filled, slots.has_holes = slots.capacity, True
            self._free_slots.copy_(slots.position.argmin(dim=-1, keepdim=True))
            self._free = self._free_slots[:, :, 0]
        if plan.scorer.scores_again:
            batch, heads, tokens, width = queries.shape
            window = plan.scorer.voters(self.run.prompt_tokens)
            self._queries = queries.new_zeros(batch, heads, window, width)
            tail = min(tokens, window)
            at = torch.arange(self.seen - tail, self.seen, device=device).remainder(window)
            self._queries.index_copy_(2, at, queries[:, :, tokens - tail :])

    # -- decoding -----------------------------------------------------------------------------------------------

    def decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store one new entry per row, attend, observe, let go.

        Args:
            query: [B, H, 1, D].
            key: [B, G, 1, D].
            value: [B, G, 1, D_v].
            scale: factor of the logits.

        Returns:
            The output [B, H, 1, D_v].
        """
        slots, plan = self.slots, self.plan
        position, free = self._position_of(self.seen), self._next_slot()
        beside = {}
        if slots.score is not None:
            beside["score"] = plan.scorer.entry(key, self._as_tensor(position, key), plan.index)
        if free is None:
            self._make_room(1)
            slots.append(key, value, position, beside)
        elif isinstance(free, int):
            slots.put(free, key, value, position, beside)
        else:
            slots.scatter(free, key, value, position, beside)
        if plan.num_moving > 0:
            self._move_sinks()
        observes = plan.evicts and plan.scorer.needs_weights
        weights: list[Tensor] | None = None
        if slots.halves is not None:
            out = slots.halves.attend(query, slots, scale)
        else:
            tiles = slots.tiles() if self._reading is None else self._reading.tiles(query, slots)
            out, weights = attend_one(query, tiles, scale, with_weights=observes)
        self.seen += 1
        slots.settle()
        if plan.evicts:
            if observes:
                assert weights is not None
                self._observe(weights[0])
            if self._queries is not None:
                self._note(self._queries, query)
            self._let_go(position, scale)
        return out

    def _position_of(self, column: int) -> Tensor | int:
        """Return the position of a column, [B, 1, 1] where rows differ."""
        return column if self.padding is None else column - self.padding

    def _steps(self, column: int) -> Tensor | int:
        """Return how many columns lie between the prompt and this one."""
        return column - self.run.prompt_tokens

    def _next_slot(self) -> Tensor | int | None:
        """Return the slot the next entry goes to, [B, heads] where they differ; None for a new one."""
        return self._free

    def _note(self, queries: Tensor, query: Tensor) -> None:
        """Put the newest query [B, H, 1, D] in the place of the oldest of the latest ones [B, H, W, D]."""
        queries.select(2, (self.seen - 1) % queries.shape[2]).copy_(query[:, :, 0])

    def _observe(self, weights: Tensor) -> None:
        slots = self.slots
        assert slots.score is not None
        memory = slots.beside.get("memory")
        seen = Observation(
            score=slots.score.narrow(2, 0, slots.filled),
            weights=weights,
            position=slots.position.narrow(2, 0, slots.filled),
            memory=None if memory is None else memory.narrow(2, 0, slots.filled),
            step=self._steps(self.seen - 1),
            layer=self.plan.index,
        )
        self.plan.scorer.observe(seen)

    def _let_go(self, newest: Tensor | int, scale: float) -> None:
        """Choose the slot that the next entry goes to, and let go of entries where none is free."""
        slots, plan = self.slots, self.plan
        if self._is_ring:
            if slots.filled > self._kept()[0]:
                first = plan.selector.num_sink
                last = self._free if isinstance(self._free, int) else slots.filled - 1
                self._free = first if last + 1 >= slots.filled else last + 1
            return
        if self._spare > 1:  # slots freed earlier are still to be filled
            self._spare -= 1
            assert self._free_slots is not None
            self._free = self._free_slots[:, :, plan.period - self._spare]
            return
        if slots.filled < self._kept()[0] + plan.period and not self._is_ragged:
            return
        self._choose_free(newest, scale)

    def _choose_free(self, newest: Tensor | int, scale: float) -> None:
        slots, plan, free = self.slots, self.plan, self._free_slots
        assert free is not None
        assert slots.score is not None
        if plan.scorer.scores_again:
            slots.score.copy_(plan.scorer.prompt(self._view(scale)))
        has_empty = self._is_ragged or plan.num_reserved > 0 or slots.has_holes  # what is no token's entry cannot leave
        plan.selector.victims(slots.score, slots.position, newest, self._recent, free, has_empty=has_empty)
        if plan.evicted.merges:
            plan.evicted.while_decoding(slots, free, plan)
        if self._keeper is not None:
            self._keeper.take(slots, free)
        if self._budget is not None:
            held = (slots.position >= 0).sum(dim=-1, keepdim=True)
            empty = slots.position.argmin(dim=-1, keepdim=True)
            free.copy_(torch.where(held > self._budget, free, empty))
            slots.position.scatter_(2, free, EMPTY)
        elif plan.period > 1:
            slots.position.scatter_(2, free, EMPTY)
            slots.has_holes = True
        self._spare = plan.period
        self._free = free[:, :, 0]

    def _view(self, scale: float) -> PromptView:
        """Return the entries held and the latest queries, as if they were a prompt."""
        slots, queries, plan = self.slots, self._queries, self.plan
        assert queries is not None
        window, device = queries.shape[2], queries.device
        slot = torch.arange(window, device=device)
        newest = self._position_of(self.seen - 1)
        newest = newest[0, 0] if isinstance(newest, Tensor) else newest  # rows that differ are stored apart
        at = newest - (newest - slot).remainder(window)
        order = at.argsort()
        return PromptView(
            layer=plan.index,
            shape=plan.shape,
            query=queries[:, :, order],
            keys=slots.keys.read(slots.filled),
            values=slots.values.read(slots.filled),
            position=slots.position.narrow(2, 0, slots.filled),
            query_position=at[order].clamp(min=-1).int().expand(queries.shape[0], -1),
            scale=scale,
            budget=self._kept(),
        )

    def append(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store several tokens at once on top of what is held, where nothing leaves, and attend."""
        slots = self.slots
        at = self._positions(query.shape[2], query.device)
        self._make_room(query.shape[2])
        slots.append(key, value, at[:, None])
        self.seen += query.shape[2]
        return self._attend(query, at, scale)

    def _attend(self, query: Tensor, at: Tensor, scale: float) -> Tensor:
        """Return the attention of several tokens at positions [B, T] to what is held."""
        slots = self.slots
        weight = slots.log_weight
        return attend_prompt(
            query,
            slots.keys.read(slots.filled),
            slots.values.read(slots.filled),
            scale,
            position=slots.position.narrow(2, 0, slots.filled),
            query_position=at,
            window=self.plan.shape.window,
            log_weight=None if weight is None else weight.narrow(2, 0, slots.filled),
        )

    # -- small things -------------------------------------------------------------------------------------------

    def _make_room(self, tokens: int) -> None:
        slots = self.slots
        if slots.filled + tokens <= slots.capacity:
            return
        if self.run.new_tokens is not None:
            self._refuse_more(tokens)
        slots.grow(max(grown(slots.filled), slots.filled + tokens))
        if self._reading is not None:
            self._reading.grow(slots.capacity)

    def _refuse_more(self, tokens: int) -> None:
        raise ValueError(
            f"this cache was built for {self.run.prompt_tokens} prompt tokens and {self.run.new_tokens} new ones; "
            f"token {self.seen + tokens} does not fit. Build it with more new_tokens."
        )

    def _positions(self, tokens: int, device: torch.device) -> Tensor:
        """Return the positions [B, T] of the next columns, -1 at padding."""
        return positions(self.seen, tokens, self.run.batch_size, self.padding, device)

    def _as_tensor(self, position: Tensor | int, like: Tensor) -> Tensor:
        if isinstance(position, Tensor):
            return position
        return torch.full((like.shape[0], 1, 1), position, dtype=torch.int32, device=like.device)

    def _move_sinks(self) -> None:
        """Turn the sinks' keys by as many positions as have been dropped between them and the rest."""
        assert self._sinks is not None
        shift = self._dropped()
        if not isinstance(shift, int) or shift > 0:
            where = self.slots.position.narrow(2, 0, self.plan.num_moving)
            self.slots.keys.write(0, self._sinks.by(shift), where)

    def _dropped(self) -> Tensor | int:
        """Return how many tokens lie between the sinks and the rest, [B] where rows differ."""
        newest, most = self._position_of(self.seen), self._kept()[0] if self._budget is None else self._budget
        dropped = newest - most
        return dropped.clamp(min=0)[:, 0, 0] if isinstance(dropped, Tensor) else max(0, dropped)

    @property
    def num_filled(self) -> int:
        """Slots in use by at least one row."""
        return self.slots.filled

    # -- what others ask ----------------------------------------------------------------------------------------

    @property
    def keeper(self) -> Keeper | None:
        """What keeps the entries that have left; None where nothing does."""
        return self._keeper

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return self._mine() if self._reading is None else (*self._mine(), *self._reading.tensors())

    def _mine(self) -> tuple[Tensor, ...]:
        """Return the slots and what stands beside them."""
        recent = self._recent if isinstance(self._recent, Tensor) else None
        sinks = None if self._sinks is None else self._sinks.keys
        mine = (sinks, self._free_slots, self._budget, recent, self._queries)
        return (*self.slots.tensors(), *(t for t in mine if t is not None))

    def held_positions(self) -> Tensor:
        """Return the positions held [B, 1 or G, m], ascending, -1 for none; syncs with the device."""
        position = self._in_slots()
        return (position if self._reading is None else self._reading.held(position)).sort(dim=-1).values

    def _in_slots(self) -> Tensor:
        """Return the positions of the slots in use, -1 for none, in any order."""
        slots = self.slots
        position = slots.position.narrow(2, 0, slots.filled).clamp(min=EMPTY)
        free = self._next_slot()
        if isinstance(free, int):
            position[:, :, free] = EMPTY
        elif isinstance(free, Tensor):
            position.scatter_(2, free[:, :, None], EMPTY)
        return position

    def used_bytes(self) -> int:
        """Return the bytes of the occupied slots, metadata included; syncs with the device."""
        held = self.occupied()
        beside = 0 if self._reading is None else self._reading.used_bytes(held)
        unused = self.slots.keys.unused_bytes() + self.slots.values.unused_bytes()
        return sum(map(self._entry_bytes, held)) + beside - unused

    def read_bytes(self) -> int:
        """Return the bytes that a decode step reads; syncs with the device."""
        if self._reading is None:
            return self.used_bytes()
        return self._reading.read_bytes(self.occupied(), self._entry_bytes(1))

    def occupied(self) -> list[int]:
        """Return the slots in use per row, the same for every head."""
        held: list[int] = ((self._in_slots() >= 0).sum(dim=-1)[:, 0] + self.plan.num_reserved).tolist()
        return held

    def _entry_bytes(self, entries: int) -> int:
        return self.plan.entry_bytes(entries, self.run, self.slots.dtype)

    def snapshot(self) -> Mapping[str, object]:
        """Return what `restore` needs to go back to this point."""
        tensors = self._changing()
        return {
            "numbers": (self.seen, self.slots.filled, self.slots.has_holes, self._spare),
            "free": self._free,
            "payloads": (self.slots.keys.snapshot(), self.slots.values.snapshot()),
            "reading": None if self._reading is None else self._reading.snapshot(self.slots.filled),
            "tensors": tuple(t.clone() for t in tensors),
        }

    def restore(self, snapshot: Mapping[str, object]) -> None:
        """Go back to a snapshot, in the same storage."""
        self.seen, self.slots.filled, self.slots.has_holes, self._spare = snapshot["numbers"]  # type: ignore[misc]
        self._free = snapshot["free"]  # type: ignore[assignment]
        for payload, old in zip((self.slots.keys, self.slots.values), snapshot["payloads"], strict=True):  # type: ignore[call-overload]
            payload.restore(old)
        if self._reading is not None:
            self._reading.restore(snapshot["reading"], self.slots.filled)
        kept: tuple[Tensor, ...] = snapshot["tensors"]  # type: ignore[assignment]
        for mine, old in zip(self._changing(), kept, strict=True):
            mine.copy_(old)

    def _changing(self) -> tuple[Tensor, ...]:
        """Return what later steps write to, other than behind what is filled."""
        return self._mine() if self.plan.evicts else ()


def take(entries: Tensor, index: Tensor) -> Tensor:
    """Gather entries [B, G, n, D] at index [B, 1 or G, k] into new storage."""
    batch, heads, tokens, width = entries.shape
    row, head = (torch.arange(size, device=entries.device) for size in (batch, heads))
    by_token = entries.transpose(1, 2)
    if not by_token.is_contiguous():
        return entries[row[:, None, None], head[:, None], index]
    at = (row[:, None, None] * tokens + index) * heads + head[:, None]  # as models lay them out: twice as fast
    return by_token.flatten(0, 2).index_select(0, at.flatten()).view(*at.shape, width)


def positions(start: int, tokens: int, batch: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Return the positions [B, T] of so many columns from `start` on, -1 at padding."""
    at = torch.arange(start, start + tokens, device=device, dtype=torch.int32).expand(batch, -1)
    return at if padding is None else (at - padding[:, 0]).clamp(min=-1)
