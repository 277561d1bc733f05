"""Threads that write behind the step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class Writers:
    """A few threads that are dealt out in turn; what is given to one of them is done in order.

    Args:
        count: threads; with 0 everything is done at once, by who asks for it.
    """

    def __init__(self, count: int) -> None:
        self._threads = [ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") for _ in range(count)]
        self._dealt = 0
        for thread in self._threads:
            weakref.finalize(self, thread.shutdown, wait=False)

    def deal(self) -> Writer:
        """Return the next thread."""
        self._dealt += 1
        return Writer(self._threads[self._dealt % len(self._threads)] if self._threads else None)

    def close(self) -> None:
        """Wait until everything is written, and end the threads."""
        for thread in self._threads:
            thread.shutdown(wait=True)


class Writer:
    """One thread, or none.

    Args:
        thread: None to do everything at once.
    """

    def __init__(self, thread: ThreadPoolExecutor | None) -> None:
        self._thread = thread

    def submit(self, write: Callable[[], T]) -> Future[T]:
        """Have something done behind the step."""
        if self._thread is not None:
            return self._thread.submit(_quietly, write)
        done: Future[T] = Future()
        done.set_result(_quietly(write))
        return done


def _quietly(write: Callable[[], T]) -> T:
    with torch.inference_mode():  # which is a thread's own, and may be the model's
        return write()
