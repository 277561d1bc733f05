"""One layer of a cache: reads the prompt, leaves what stays of it in stores, and decodes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.barrier import Barrier
from kvbench.cache.clock import Clock
from kvbench.cache.codecs.dense import Dense
from kvbench.cache.pair import Half, Meeting, Prompt
from kvbench.cache.placement.mover import Mover
from kvbench.cache.placement.rooms import Tier
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.plan import LayerPlan, Region, score_dtype
from kvbench.cache.ragged import RaggedStore
from kvbench.cache.repeat import repeated_positions
from kvbench.cache.replayed import ReplayedStore
from kvbench.cache.slots import Slots
from kvbench.cache.store import Store, positions
from kvbench.cache.views import PromptView, Scored
from kvbench.kernels.attend import attend_causal, attend_one, attend_prompt
from kvbench.types import RunShape, Step


class CacheLayer:
    """Stores the entries of one layer, attends to them, and lets go of those the plan gives up.

    Args:
        plan: what to do.
        run: how long the rows of the batch are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        empty: a tensor [0] of the dtype and on the device of keys and values.
        barrier: where layers wait for each other that share a budget.
        meeting: where the layers of a pair wait for each other.
        mover: what brings entries that lie elsewhere, where any layer's do.
        clock: what says the time where steps are recorded.
    """

    def __init__(
        self,
        plan: LayerPlan,
        run: RunShape,
        padding: Tensor | None,
        empty: Tensor,
        barrier: Barrier | None = None,
        meeting: Meeting | None = None,
        mover: Mover | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.plan = plan
        self.clock = clock
        self._store: Callable[..., Store] = Store if clock is None else partial(ReplayedStore, clock=clock)
        self.run = run
        self.padding = padding
        self.barrier = barrier
        self.meeting = meeting
        self.mover = mover
        self.home = None if mover is None else mover.home_of(plan.index)
        self.seen = 0  # columns that passed through, padding included
        self.stores: list[tuple[Region, Store]] = []
        self._chunks: Slots | None = None  # the prompt as far as it was read in pieces, where not all of it stays
        self._prompt_score: Tensor | None = None
        self._last_queries: Tensor | None = None
        self._asking: Tensor | None = None  # the last queries so far, where the codec wants them [B, H, t, D]
        self.hidden: Tensor | None = None  # [B, T, hidden], what this pass brings to the layer, where a hook notes it
        self._similarity: Tensor | None = None  # summed over the prompt's tokens so far [B]
        if plan.stays or plan.in_pieces:  # allocated before any prompt is read: nothing passing lies between layers
            shape = plan.shape
            sizes = [(run.batch_size, shape.kv_heads, 0, dim) for dim in (shape.key_dim, shape.value_dim)]
            like = [empty.new_empty(size) for size in sizes]
            self.stores = [(each, self._store_of(each, *like)) for each in plan.regions(run)]
            self._leave()

    # -- the hot path -------------------------------------------------------------------------------------------

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        """Store the new entries, attend, observe, evict.

        Args:
            query: of all tokens of the pass, or of the last ones of a prompt's [B, H, t, D], rotated.
            key: [B, G, T, D], rotated.
            value: [B, G, T, D_v].
            scale: factor of the attention logits.
            step: what the engine said of this pass.

        Returns:
            The attention output [B, H, t, D_v].
        """
        if self.home is None:
            return self._attend(query, key, value, scale, step)
        with self.at_hand():
            return self._attend(query, key, value, scale, step)

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Have entries that lie elsewhere where they can be read and written."""
        if self.home is not None and self.mover is not None:
            self.mover.open(self.home)
        yield
        self._leave()

    def _store_of(self, region: Region, keys: Tensor, values: Tensor) -> Store:
        """Return room for a region; a row on its own has no padding."""
        plan, run = region.plan, region.run
        kind = RaggedStore if plan.lies_ragged(run) else self._store
        padding = self.padding if run.batch_size == self.run.batch_size else None
        keys, values = (side[region.rows, region.heads] for side in (keys, values))
        return kind(plan, run, padding, keys, values)

    def _leave(self) -> None:
        """Let entries go to where they lie between steps."""
        if self.home is not None and self.mover is not None:
            self.mover.close(self.home, [store.slots for _, store in self.stores])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        tokens = key.shape[2]
        if step.phase == "repeat":
            return self._repeat(query, key, value, scale, step)
        if step.phase == "prefill":
            out = self._prefill(query, key, value, scale, step.is_last_chunk)
        elif tokens > 1 and (self.plan.one_by_one or self.clock is not None):  # each sees what the one before it left
            parts = [t.split(1, dim=2) for t in (query, key, value)]
            return torch.cat([self._attend(q, k, v, scale, step) for q, k, v in zip(*parts, strict=True)], dim=2)
        else:
            out = self._through_stores(query, key, value, scale)
        self.seen += tokens
        return out

    def _through_stores(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        assert self.stores, "decode before prefill"
        if len(self.stores) == 1:
            store = self.stores[0][1]
            take_in = store.decode if query.shape[2] == 1 else store.append
            return take_in(query, key, value, scale)
        out = query.new_empty(*query.shape[:3], value.shape[3])
        share = query.shape[1] // key.shape[1]
        for region, store in self.stores:
            rows, heads = region.rows, region.heads
            queries = slice(heads.start * share, heads.stop * share)
            take_in = store.decode if query.shape[2] == 1 else store.append
            out[rows, queries] = take_in(query[rows, queries], key[rows, heads], value[rows, heads], scale)
        return out

    def look(self, query: Tensor, scale: float) -> Tensor:
        """Attend with one query per row and head [B, H, 1, D] to everything held, and store nothing."""
        out = query.new_empty(*query.shape[:3], self.plan.shape.value_dim)
        share = self.plan.shape.query_heads // self.plan.shape.kv_heads
        for region, store in self.stores:
            mine = region.rows, slice(region.heads.start * share, region.heads.stop * share)
            out[mine] = attend_one(query[mine], store.slots.tiles(), scale, with_weights=False)[0]
        return out

    def skip(self) -> None:
        """Count a token whose step was replayed."""
        self.seen += 1
        for _, store in self.stores:
            assert isinstance(store, ReplayedStore | RaggedStore)
            store.skip()

    @property
    def kind(self) -> tuple[tuple[bool, ...], ...]:
        """What the next step does that others do not."""
        return tuple(store.kind for _, store in self.stores if isinstance(store, ReplayedStore))

    # -- the prompt ---------------------------------------------------------------------------------------------

    def _prefill(self, query: Tensor, key: Tensor, value: Tensor, scale: float, is_last: bool) -> Tensor:
        tokens, window = key.shape[2], self.plan.shape.window
        self._check_prompt(len(query), self.seen + tokens, is_last)
        at = positions(self.seen, tokens, len(query), self.padding, query.device)
        asking = at[:, -query.shape[2] :]
        is_whole = self.seen == 0 and is_last
        if self.plan.in_pieces and not is_whole:
            return self._read_piece(query, key, value, scale, is_last)
        if is_whole and self.plan.repeater is None:
            keys, values, position = key, value, at[:, None]
        else:
            chunks = self._gathering(key, value)
            chunks.append(key, value, at[:, None])
            keys, values = chunks.keys.read(chunks.filled), chunks.values.read(chunks.filled)
            position = chunks.position.narrow(2, 0, chunks.filled)
        if is_whole and self.padding is None and query.shape[2] == tokens and (window == 0 or tokens <= window):
            out = attend_causal(query, keys, values, scale)
        else:
            out = attend_prompt(query, keys, values, scale, position=position, query_position=asking, window=window)
        if self.hidden is not None:
            self._compare(self.hidden, out, at)
            self.hidden = None
        self._end_of_pass(query, keys, values, position, asking, scale, is_last)
        return out

    def _read_piece(self, query: Tensor, key: Tensor, value: Tensor, scale: float, is_last: bool) -> Tensor:
        """Attend to what is packed of the prompt and to a piece of it, and pack the piece."""
        out = query.new_zeros(*query.shape[:3], value.shape[3])
        share = query.shape[1] // key.shape[1]
        for region, store in self.stores:
            rows, heads = region.rows, region.heads
            queries = slice(heads.start * share, heads.stop * share)
            tokens = key.shape[2] - self._padding_in(region, key.shape[2])
            asked = min(tokens, query.shape[2])
            if asked > 0:
                mine, keys, values = query[rows, queries], key[rows, heads], value[rows, heads]
                read = store.read_on(mine[:, :, -asked:], keys[:, :, -tokens:], values[:, :, -tokens:], scale)
                out[rows, queries, -asked:] = read
        self._take_in(key, value, is_last)
        return out

    def _take_in(self, key: Tensor, value: Tensor, is_last: bool) -> None:
        """Pack a piece of the prompt."""
        for region, store in self.stores:
            tokens = key.shape[2] - self._padding_in(region, key.shape[2])
            if tokens > 0:
                keys, values = (side[region.rows, region.heads, -tokens:] for side in (key, value))
                store.take_in(keys, values)
            if is_last:
                store.end_prompt()

    def _padding_in(self, region: Region, tokens: int) -> int:
        """Return how many of so many next columns a region does not hold, as they are padding of its one row."""
        if region.run.batch_size == self.run.batch_size:
            return 0
        padding: int = self.run.padding[region.rows.start]
        return min(max(0, padding - self.seen), tokens)

    def _compare(self, hidden: Tensor, out: Tensor, at: Tensor) -> None:
        """Add up the cosines between hidden states before and after attention, of tokens that are no padding."""
        shape, wide = self.plan.shape, torch.promote_types(hidden.dtype, torch.float32)
        if shape.output is None:
            return
        added = out.transpose(1, 2).flatten(2) @ shape.output.flatten(0, 1)
        if shape.output_bias is not None:
            added = added + shape.output_bias
        cosine = torch.nn.functional.cosine_similarity(hidden.to(wide), (hidden + added).to(wide), dim=-1)
        summed = (cosine * (at >= 0)).sum(dim=-1)
        self._similarity = summed if self._similarity is None else self._similarity + summed

    def _gathering(self, key: Tensor, value: Tensor) -> Slots:
        """Return where the pieces of a prompt gather: their final place, if all of them stay."""
        if self.plan.stays:
            return self.stores[0][1].slots
        if self._chunks is None:
            tokens, is_same = self.run.prompt_tokens, self.plan.shape.values_are_keys  # packed once, when all is read
            self._chunks = Slots(Dense(), key, value, tokens, heads=1, beside={}, values_are_keys=is_same)
        return self._chunks

    def _end_of_pass(
        self, query: Tensor, keys: Tensor, values: Tensor, position: Tensor, at: Tensor, scale: float, is_last: bool
    ) -> None:
        """Score the prompt and, at its end, leave what stays in its final storage and free everything else."""
        if self.plan.num_queries > 0:
            self._asking = latest(self._asking, query, self.plan.num_queries).clone()
        if self.meeting is not None:
            if is_last:
                self.meeting.arrive(self, keys, values, position)
            return
        if not self.plan.compresses:
            if self.plan.in_pieces:
                self._take_in(keys, values, is_last)
            elif is_last and self.plan.stays:
                self.stores[0][1].fill(keys, values, position, None, query)
            elif is_last:
                self._keep(self._view(query, keys, values, position, at, scale), None, None)
            return
        if self.plan.repeater is not None:
            sets = self.plan.score_heads
            self._prompt_score = keys.new_zeros(len(keys), sets, keys.shape[2], dtype=score_dtype(keys.dtype))
            return
        voters, tokens = self.plan.scorer.voters(self.run.prompt_tokens), query.shape[2]
        if voters > 0:
            query = latest(self._last_queries, query, voters)
            stop = self.seen + tokens
            at = positions(stop - query.shape[2], query.shape[2], len(query), self.padding, query.device)
            self._last_queries = None if is_last else query.clone()
        if not (self.plan.scorer.accumulates or is_last):
            return
        view = self._view(query, keys, values, position, at, scale)
        score = self.plan.scorer.prompt(view)
        entries = (len(keys), self.plan.score_heads, keys.shape[2])
        if score.shape not in (entries, (len(keys), 1, keys.shape[2])):
            name, got = type(self.plan.scorer).__name__, list(score.shape)
            raise ValueError(f"{name}.prompt must return a score for each entry {list(entries)}; got {got}")
        if self._prompt_score is not None:
            score = score + torch.nn.functional.pad(self._prompt_score, (0, tokens))
        self._prompt_score = score
        if is_last:
            self._settle(view)

    def _repeat(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        """Attend to the prompt and to what repeats a part of it, score that part, and keep nothing of this pass."""
        prompt = self.stores[0][1].slots if self.plan.stays else self._chunks
        assert prompt is not None, "the prompt has to be read before it is repeated"
        self.hidden = None  # noted for the prompt alone
        assert step.repeated is not None
        keys, values = prompt.keys.read(prompt.filled), prompt.values.read(prompt.filled)
        position = prompt.position.narrow(2, 0, prompt.filled)
        at = repeated_positions(step, query.shape[2], self.run, query.device)
        all_keys, all_values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        everywhere = torch.cat([position, at[:, None]], dim=2)
        out = attend_prompt(query, all_keys, all_values, scale, position=everywhere, query_position=at, window=0)
        if self.plan.repeater is None:
            return out
        assert self._prompt_score is not None
        view = self._view(query, all_keys, all_values, everywhere, at, scale)
        self._prompt_score[:, :, step.repeated] = self.plan.repeater.repeated(view, step.repeated)
        if step.is_last_chunk:
            self._settle(self._view(query, keys, values, position, at, scale))
        return out

    def _view(
        self, query: Tensor, keys: Tensor, values: Tensor, position: Tensor, at: Tensor, scale: float
    ) -> PromptView:
        return PromptView(
            layer=self.plan.index,
            shape=self.plan.shape,
            query=query,
            keys=keys,
            values=values,
            position=position,
            query_position=at,
            scale=scale,
            budget=self.plan.budget or self.run.prompt_lengths,
            similarity=self._mean_similarity(),
        )

    def _mean_similarity(self) -> Tensor | None:
        summed = self._similarity
        return None if summed is None else summed / torch.tensor(self.run.prompt_lengths, device=summed.device)

    def _settle(self, view: PromptView) -> None:
        """Find out how much each head may keep, here or where the layers wait for each other, and keep it."""
        score, sharer = self._prompt_score, self.plan.sharer
        assert score is not None
        if sharer is None:
            self._keep(view, score, self.plan.counts)
            return
        scored = Scored(
            plan=self.plan,
            score=score,
            position=view.position,
            statistic=sharer.statistic(view),
            lengths=self.run.prompt_lengths,
        )
        if sharer.scope == "layer":
            self._keep(view, score, sharer.share([scored])[0])
        else:
            assert self.barrier is not None
            self.barrier.arrive(sharer, scored, lambda counts: self._keep(view, score, counts))

    def _keep(self, view: PromptView, score: Tensor | None, counts: Sequence[Sequence[int | None]] | None) -> None:
        asking = view.query if self._asking is None else self._asking
        self._prompt_score = self._chunks = self._similarity = self._asking = None
        share = self.plan.shape.query_heads // self.plan.shape.kv_heads
        memory = self.plan.scorer.memory(view) if self.plan.evicts else None
        for region in self.plan.regions(self.run, counts):
            rows, heads = region.rows, region.heads
            is_whole = region.run.batch_size == self.run.batch_size
            skip = 0 if is_whole else self.run.padding[rows.start]  # a row on its own has no padding
            keys, values = (t[rows, heads, skip:] for t in (view.keys, view.values))
            sets = heads if score is not None and score.shape[1] > 1 else slice(None)
            scores, mine = (t if t is None else t[rows, sets, skip:] for t in (score, memory))
            queries = asking[rows, heads.start * share : heads.stop * share]
            store = self._store_of(region, view.keys, view.values)
            store.fill(keys, values, view.position[rows, :, skip:], scores, queries, mine)
            self.stores.append((region, store))
        self._leave()

    def go_on_from(self, prompt: Prompt, keys: Tensor, values: Tensor) -> None:
        """Keep a prompt that is shared with another layer, and only what follows it in slots.

        Args:
            prompt: of both layers.
            keys: an example [B, G, T, D].
            values: an example [B, G, T, D_v].
        """
        plan, run = self.plan, self.run
        assert plan.pair is not None
        self._chunks = None
        (region,) = plan.regions(run)
        half = Half(prompt, plan.pair, plan, run)
        self.stores = [(region, self._store(plan, run, self.padding, keys, values, half))]

    def _check_prompt(self, batch: int, tokens: int, is_last: bool) -> None:
        run = self.run
        if batch != run.batch_size or tokens > run.prompt_tokens or (is_last and tokens < run.prompt_tokens):
            raise ValueError(
                f"this cache was built for prompts of {run.batch_size} x {run.prompt_tokens} tokens; got {batch} x "
                f"{tokens}. Build it with the RunShape of the batch."
            )

    # -- what others ask ----------------------------------------------------------------------------------------

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything the layer holds."""
        waiting = () if self._chunks is None else self._chunks.tensors()
        return (*waiting, *(tensor for _, store in self.stores for tensor in store.tensors()))

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier, of what does not lie on the device alone."""
        kept = sum(store.keeper.bytes_on(tier) for _, store in self.stores if store.keeper is not None)
        return kept if self.home is None else kept + self.home.bytes_on(tier)

    def traffic(self) -> Traffic:
        """Return what has moved between the device and elsewhere so far."""
        found = Traffic()
        for _, store in self.stores:
            if store.keeper is not None:
                found.add(store.keeper.traffic)
        if self.home is not None:
            found.add(self.home.traffic)
        return found

    def held_positions(self) -> Tensor:
        """Return the positions held [B, 1 or G, m], ascending, -1 for none; syncs with the device."""
        assert self.stores, "nothing is held before the prompt was read"
        if len(self.stores) == 1:
            return self.stores[0][1].held_positions()
        parts = [(region, store.held_positions()) for region, store in self.stores]
        kv_heads = self.plan.shape.kv_heads
        sets = 1 if all(r.plan.shape.kv_heads == kv_heads and h.shape[1] == 1 for r, h in parts) else kv_heads
        size = (self.run.batch_size, sets, max(held.shape[2] for _, held in parts))
        held = parts[0][1].new_full(size, -1)
        for region, mine in parts:
            heads = region.heads if sets > 1 else slice(0, 1)
            held[region.rows, heads, size[2] - mine.shape[2] :] = mine
        return held

    def used_bytes(self) -> int:
        """Return the bytes of the occupied slots, metadata included; syncs with the device."""
        return self.plan.codec.fixed_bytes + sum(store.used_bytes() for _, store in self.stores)

    def entries_held(self) -> Tensor:
        """Return the entries held [B, 1 or G]; syncs with the device."""
        return (self.held_positions() >= 0).sum(dim=-1)

    def numbers_held(self) -> int:
        """Return how many numbers the keys and values held have; syncs with the device."""
        shape = self.plan.shape
        return int(self.entries_held().expand(-1, shape.kv_heads).sum()) * shape.stored_dim

    def read_bytes(self) -> int:
        """Return the bytes that a decode step reads; syncs with the device."""
        return self.plan.codec.fixed_bytes + sum(store.read_bytes() for _, store in self.stores)

    def snapshot(self) -> Mapping[str, object]:
        """Return what `restore` needs to go back to this point."""
        home = None if self.home is None else self.home.snapshot()
        return {"seen": self.seen, "home": home, "stores": [store.snapshot() for _, store in self.stores]}

    def restore(self, snapshot: Mapping[str, object]) -> None:
        """Go back to a snapshot, in the same storage."""
        self.seen = snapshot["seen"]  # type: ignore[assignment]
        for (_, store), mine in zip(self.stores, snapshot["stores"], strict=True):  # type: ignore[call-overload]
            store.restore(mine)
        if self.home is not None:
            self.home.restore(snapshot["home"])  # type: ignore[arg-type]


def latest(earlier: Tensor | None, query: Tensor, count: int) -> Tensor:
    """Return the last `count` queries [B, H, t, D] of those before this pass, None for none, and its own."""
    together = query if earlier is None else torch.cat([earlier, query], dim=2)
    return together[:, :, -count:]
