"""What keeps the rows that leave one layer's slots, and brings some of them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import DensePayload
from kvbench.cache.placement.rooms import Tier
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.plan import LayerPlan
from kvbench.cache.protocols import Remembering
from kvbench.cache.ring import Ring, Rows, rows_by_set
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving
from kvbench.cache.writers import Writers
from kvbench.kernels.attend import EMPTY, Tile
from kvbench.types import RunShape

BLOCK = 1024  # rows of a prompt that go down at once


class Rules(Protocol):
    """When entries come back, and which."""

    @property
    def restore_every(self) -> int:
        """Times entries leave while decoding before some may come back; 0 for never."""

    @property
    def importance_threshold(self) -> float:
        """Mean attention above which an entry may come back."""

    @property
    def max_restored(self) -> int:
        """Entries of a kept set that come back at once."""


@dataclass(frozen=True)
class Snapshot:
    """A ring as it was, and what is counted beside it."""

    times: int
    taken: int
    may_return: bool
    ring: tuple[int, list[Tensor]]


class Offloading:
    """A ring per kept set; rows are written behind the step, and a row is read once it is written.

    Args:
        rules: what comes back.
        plan: of these heads.
        run: how long these rows are, all of them the same.
        ring: where rows go.
        writers: what writes them.
        sum_up: takes the keys and values [B, G, k, D] that fall off the ring, zeros between them, and how many they are
            [B, G]; None where they are gone.
    """

    def __init__(
        self,
        rules: Rules,
        plan: LayerPlan,
        run: RunShape,
        ring: Ring,
        writers: Writers,
        sum_up: Callable[[Slots, Tensor, Tensor, Tensor], None] | None,
    ) -> None:
        self.rules, self.plan, self.run, self.ring = rules, plan, run, ring
        self._sum_up = sum_up
        self._moved = Traffic()
        self._writers, self._writer = writers, writers.deal()
        self._writing: Future[list[Rows]] | None = None
        self._may_return = False  # whether any row on the host mattered enough
        self._times = 0  # entries have left while decoding
        self._taken = 0  # rows that a set has been given, at most

    @property
    def _scorer(self) -> Remembering | None:
        scorer = self.plan.scorer
        return scorer if isinstance(scorer, Remembering) and scorer.memory_bytes > 0 else None

    # -- the prompt ---------------------------------------------------------------------------------------------

    def take_prompt(self, leaving: Leaving) -> None:
        """Keep what leaves at the prompt's end, the latest of it where there is more than the ring has room for."""
        gone, room = leaving.gone(), self.ring.form.rows
        count = int(gone[0, 0].sum())  # the same in every set
        if count == 0:
            return
        index = gone.nonzero()[:, 2].view(*gone.shape[:2], count)[:, :, -room:]
        position = leaving.position.expand_as(gone)
        beside = {"score": leaving.score[..., None]}
        if self._scorer is not None:
            beside["memory"] = self._remembered(leaving.score, position)
        beside = {name: beside[name] for name in self.ring.beside}
        for first in range(0, index.shape[2], BLOCK):
            at = index[:, :, first : first + BLOCK]
            kept = {name: take(rows, at) for name, rows in beside.items()}
            rows = rows_by_set(take(leaving.keys, at), take(leaving.values, at), position.gather(2, at), kept)
            self.ring.fill(first, self._down(rows, blocking=True))
        self._taken = index.shape[2]
        self._may_return = self._any_matters()

    def start(self, slots: Slots) -> None:
        """Let the prompt be the first call that is remembered of what stayed."""
        memory = slots.beside.get("memory")
        if self._scorer is not None and memory is not None:
            assert slots.score is not None
            memory.copy_(self._remembered(slots.score, slots.position))

    def _remembered(self, score: Tensor, position: Tensor) -> Tensor:
        """Return what is remembered of entries of a prompt [B, S, n], by the mean over the queries that see each."""
        assert self._scorer is not None
        return self._scorer.remembered(score / (self.run.prompt_tokens - position))

    # -- while decoding -----------------------------------------------------------------------------------------

    def take(self, slots: Slots, victims: Tensor) -> None:
        """Bring back what mattered more than some of what stays, and keep those and the victims, behind the step."""
        self._times += 1
        leave = [self._at(slots, victims)]
        if self.rules.restore_every > 0 and self._times % self.rules.restore_every == 0:
            leave += self._restore(slots, victims)
        self._keep(slots, [self._down(rows) for rows in leave])

    def _keep(self, slots: Slots, leave: Sequence[Rows]) -> None:
        """Have rows written; where some may fall off that are summed up, wait for them."""
        self._settle()
        self._taken += sum(rows.position.shape[1] for rows in leave)
        catches = self._sum_up is not None and self._taken > self.ring.form.rows
        reached = _reached(slots.position.device)
        self._writing = self._writer.submit(partial(self._write, leave, reached, catches=catches))
        fallen = self._settle() if catches else []
        if fallen:
            self._add_up(slots, fallen)

    def _write(self, leave: Sequence[Rows], reached: torch.cuda.Event | None, *, catches: bool) -> list[Rows]:
        """Write rows once they have come down; return those that fell off, as far as they are wanted."""
        if reached is not None:
            reached.synchronize()
        fallen = [column for rows in leave for column in self.ring.push(rows, catches=catches)]
        self._may_return = self._any_matters()
        return fallen

    def _settle(self) -> list[Rows]:
        """Wait until everything is written; return what fell off meanwhile."""
        writing, self._writing = self._writing, None
        return [] if writing is None else writing.result()

    def _add_up(self, slots: Slots, fallen: Sequence[Rows]) -> None:
        """Add what fell off the ring to the summary."""
        falls = torch.cat([rows.position for rows in fallen], dim=1) >= 0
        batch, heads = slots.position.shape[0], self.plan.shape.kv_heads
        device = slots.position.device
        keys, values = (
            (torch.cat(side, dim=2) * falls[:, None, :, None]).unflatten(0, (batch, -1)).flatten(1, 2).to(device)
            for side in ([rows.keys for rows in fallen], [rows.values for rows in fallen])
        )
        number = falls.sum(dim=1).view(batch, -1).repeat_interleave(heads // slots.position.shape[1], dim=1)
        assert self._sum_up is not None
        self._sum_up(slots, keys, values, number.to(device))

    # -- what comes back ----------------------------------------------------------------------------------------

    def _restore(self, slots: Slots, victims: Tensor) -> list[Rows]:
        """Bring back what mattered more than some of what stays; return what gave way."""
        self._moved.fetches += 1
        if self._writing is not None and not self._writing.done():
            self._moved.waits += 1
        self._settle()
        if not self._may_return:
            return []
        most = min(self.rules.max_restored, slots.filled, self.ring.form.rows)
        weak, slot = self._weakest(slots, victims, most)
        strong, place = self._candidates().topk(most)
        swaps = strong > weak.flatten(0, 1).cpu()  # the strongest for the weakest, and so on
        sets, rank = swaps.nonzero().unbind(dim=1)
        if len(sets) == 0:
            return []
        columns = int(rank.max()) + 1
        leave = self._at(slots, slot[:, :, :columns])
        leave.position.masked_fill_(~swaps[:, :columns].to(leave.position.device), EMPTY)
        self._put_back(slots, slot.flatten(0, 1), sets, rank, place[sets, rank])
        return [leave]

    def _weakest(self, slots: Slots, victims: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Return how much the entries mattered that may give way, the least first, and their slots [B, S, k]."""
        assert self._scorer is not None
        assert self.plan.budget is not None
        filled, selector = slots.filled, self.plan.selector
        position = slots.position.narrow(2, 0, filled)
        newest = position.amax(dim=2, keepdim=True)
        recent = selector.recent(self.plan.budget[0] - self.plan.num_reserved)
        stays = (position < selector.num_sink) | (position > newest - recent)  # slots without a token, too
        importance = self._scorer.importance(slots.beside["memory"].narrow(2, 0, filled))
        importance = importance.masked_fill(stays, torch.inf).scatter(2, victims, torch.inf)
        return importance.topk(most, dim=2, largest=False)

    def _candidates(self) -> Tensor:
        """Return how much rows mattered that may come back, minus infinity for the others [Q, rows]."""
        assert self._scorer is not None
        importance = self._scorer.importance(self.ring.beside["memory"])
        may = (self.ring.here() >= 0) & (importance > self.rules.importance_threshold)
        return importance.masked_fill(~may, -torch.inf)

    def _any_matters(self) -> bool:
        """Return whether any row may come back: looked for when rows are written, so that a step need not."""
        return self.rules.restore_every > 0 and bool((self._candidates() > -torch.inf).any())

    def _put_back(self, slots: Slots, slot: Tensor, sets: Tensor, rank: Tensor, place: Tensor) -> None:
        """Write rows of the ring to slots [Q, k], of which each takes one."""
        rows, device = self.ring.read(sets, place), slots.position.device
        self.ring.lend(sets, place)
        self._moved.up += sum(t.nbytes for t in rows.tensors())
        on = sets.to(device)
        at = slot[on, rank.to(device)]
        for payload, entries in ((slots.keys, rows.keys), (slots.values, rows.values)):
            assert isinstance(payload, DensePayload)
            data = payload.data.unflatten(1, (slots.position.shape[1], -1)).flatten(0, 1)
            data[on, :, at] = entries[:, :, 0].to(device)
        slots.position.flatten(0, 1)[on, at] = rows.position[:, 0].to(device)
        for name, mine in rows.beside.items():
            row = slots.beside[name].flatten(0, 1)
            row[on, at] = mine.view(len(on), *row.shape[2:]).to(device)

    # -- rows by set --------------------------------------------------------------------------------------------

    def _at(self, slots: Slots, at: Tensor) -> Rows:
        """Return copies of what lies in slots [B, S, k]."""
        keys, values = (take(payload.read(slots.filled), at) for payload in (slots.keys, slots.values))
        whole = {name: slots.beside[name] for name in self.ring.beside}
        kept = {name: take(row if row.dim() == 4 else row[..., None], at) for name, row in whole.items()}
        return rows_by_set(keys, values, slots.position.gather(2, at), kept)

    def _down(self, rows: Rows, *, blocking: bool = False) -> Rows:
        """Send rows to the host."""
        self._moved.down += sum(t.nbytes for t in rows.tensors())
        return rows.on_host(blocking=blocking)

    # -- what others ask ----------------------------------------------------------------------------------------

    @property
    def traffic(self) -> Traffic:
        """What has moved so far."""
        self._settle()
        in_file = self.ring.row_bytes if self.ring.bytes_on("disk") > 0 else 0
        return replace(self._moved, written=self.ring.num_written * in_file, read=self.ring.num_read * in_file)

    def elsewhere(self) -> Tensor:
        """Return the positions that lie on the host and nowhere else [B, S, rows], -1 for none."""
        self._settle()
        here: Tensor = self.ring.here().unflatten(0, (self.run.batch_size, -1))
        return here

    def tiles(self, query: Tensor, slots: Slots) -> list[Tile]:
        """Return what a query reads: the slots."""
        return slots.tiles()

    def grow(self, capacity: int) -> None:
        """Do nothing: the ring has its size from the start."""

    def held(self, position: Tensor) -> Tensor:
        """Return the positions that attention reads, those in slots."""
        return position

    def used_bytes(self, entries: Sequence[int]) -> int:
        """Return 0: nothing lies on the device beside the slots."""
        return 0

    def read_bytes(self, entries: Sequence[int], slot_bytes: int) -> int:
        """Return the bytes of the slots in use."""
        return sum(entries) * slot_bytes

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes of the ring that lie in one tier."""
        return self.ring.bytes_on(tier)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""
        return self.ring.tensors()

    def snapshot(self, filled: int) -> Snapshot:
        """Return what `restore` needs to go back to this point."""
        self._settle()
        return Snapshot(self._times, self._taken, self._may_return, self.ring.snapshot())

    def restore(self, snapshot: object, filled: int) -> None:
        """Go back to a snapshot, in the same storage."""
        assert isinstance(snapshot, Snapshot)
        self._settle()
        self._times, self._taken, self._may_return = snapshot.times, snapshot.taken, snapshot.may_return
        self.ring.restore(snapshot.ring)

    def close(self) -> None:
        """Write what is left, end the threads and let go of memory and files."""
        self._settle()
        self._writers.close()
        self.ring.close()


def _reached(device: torch.device) -> torch.cuda.Event | None:
    """Return when what has been sent so far will have come down; None where it has."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
