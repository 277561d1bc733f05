"""What brings the entries of layers to shared buffers, ahead of need and in the order layers attend."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from kvbench.cache.placement.apart import Apart
from kvbench.cache.placement.home import Home
from kvbench.cache.placement.rooms import NOTHING_BYTES, num_buffers
from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots


@dataclass(eq=False)
class Buffer:
    """Bytes [n] that one layer after another uses."""

    data: Tensor


@dataclass(frozen=True)
class Coming:
    """A layer's entries on their way to a buffer.

    Args:
        buffer: which.
        stages: what is copied once each is done, or, with an event, once that is.
    """

    buffer: Buffer
    stages: list[Future[torch.cuda.Event | None]]

    def is_there(self) -> bool:
        """Whether nobody has to wait."""
        if not all(stage.done() for stage in self.stages):
            return False
        return all(event is None or event.query() for event in (stage.result() for stage in self.stages))


class Mover:
    """Lends buffers to layers; while one attends, the entries of the next ones are fetched.

    On a GPU copies run in a queue of their own; where files are read, and on a CPU, a thread makes them.

    Args:
        plans: of the layers that keep entries elsewhere, in the order they attend.
        device: where the model computes.
    """

    def __init__(self, plans: Sequence[LayerPlan], device: torch.device) -> None:
        self._nothing = torch.zeros(NOTHING_BYTES, dtype=torch.uint8, device=device)
        self._homes = {plan.index: _home(plan, self._nothing) for plan in plans}
        self.homes, self.device = list(self._homes.values()), device
        prefetch = max(home.place.prefetch for home in self.homes)
        self._buffers = [self._buffer(0) for _ in range(num_buffers(len(self.homes), prefetch))]
        self._free = list(self._buffers)
        self._lent: tuple[Home, Buffer] | None = None
        self._coming: dict[Home, Coming] = {}
        self._queue = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread: ThreadPoolExecutor | None = None
        if prefetch > 0 and (self._queue is None or any(home.place.shares.disk > 0 for home in self.homes)):
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch")
            weakref.finalize(self, self._thread.shutdown, wait=False)

    def home_of(self, index: int) -> Home | None:
        """Return where a layer's entries lie; None for the device."""
        return self._homes.get(index)

    def _buffer(self, size: int) -> Buffer:
        return Buffer(torch.zeros(size, dtype=torch.uint8, device=self.device))

    def open(self, home: Home) -> None:
        """Lend a layer a buffer with everything it keeps, and begin to fetch what the next ones keep."""
        if home.is_empty:
            return
        home.traffic.fetches += 1
        coming = self._coming.pop(home, None)
        if coming is None or not coming.is_there():
            home.traffic.waits += 1
        if coming is None:
            began = perf_counter()
            coming = self._fetch(home)
            home.traffic.stalled_s += perf_counter() - began
        self._lent = home, coming.buffer
        home.lend(coming.buffer.data)
        self._fetch_ahead(home)
        for number, stage in enumerate(coming.stages):
            began = perf_counter()
            event = stage.result()
            home.traffic.stalled_s += perf_counter() - began
            if event is not None:
                torch.cuda.current_stream(self.device).wait_event(event)
            home.arrived(number, coming.buffer.data)

    def _fetch_ahead(self, home: Home) -> None:
        at = self.homes.index(home)
        for following in self.homes[at + 1 :] + self.homes[:at]:
            if not self._free:
                return
            if following not in self._coming and not following.is_empty:
                self._coming[following] = self._fetch(following, self._thread)

    def _fetch(self, home: Home, thread: ThreadPoolExecutor | None = None) -> Coming:
        buffer = self._free.pop(0)
        need = max(each.buffer_bytes for each in self.homes)
        if len(buffer.data) < need:
            buffer.data = self._buffer(need).data
        # what a buffer, or a host's row, was used for is done once the device comes to where it is now
        reached = None if self._queue is None else torch.cuda.current_stream(self.device).record_event()
        copies = [partial(self._copy, copy, reached) for copy in home.copies(buffer.data)]
        return Coming(buffer, [_now(copy) if thread is None else thread.submit(copy) for copy in copies])

    def _copy(self, copy: Callable[[], None], reached: torch.cuda.Event | None) -> torch.cuda.Event | None:
        if self._queue is None or reached is None:
            copy()
            return None
        with torch.cuda.stream(self._queue):
            self._queue.wait_event(reached)
            copy()
            copied: torch.cuda.Event = self._queue.record_event()
            return copied

    def close(self, home: Home, slots: Sequence[Slots]) -> None:
        """Let a layer keep what was appended, and take the buffer back."""
        home.keep(slots)
        if self._lent is not None and self._lent[0] is home:
            self._free.append(self._lent[1])
            self._lent = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""
        buffers = (buffer.data for buffer in self._buffers)
        return (self._nothing, *buffers, *(t for home in self.homes for t in home.tensors()))


def mover_of(plans: Sequence[LayerPlan], device: torch.device) -> Mover | None:
    """Return what brings entries that lie elsewhere; None where all lie on the device."""
    elsewhere = [plan for plan in plans if plan.place is not None]
    return Mover(elsewhere, device) if elsewhere else None


def _home(plan: LayerPlan, nothing: Tensor) -> Home:
    assert plan.place is not None
    return Apart(plan, nothing) if plan.place.attend == "host" else Home(plan, nothing)


def _now(copy: Callable[[], torch.cuda.Event | None]) -> Future[torch.cuda.Event | None]:
    done: Future[torch.cuda.Event | None] = Future()
    done.set_result(copy())
    return done
