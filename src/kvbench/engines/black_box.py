"""Engines that bring their own cache: they read a prompt and go on alone, neither interleaved nor teacher-forced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from kvbench.models.load import Loaded
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What came of one prompt.

    Args:
        tokens: [B, new_tokens].
        step_ns: from the prompt to the first token, then from token to token; a token arrives when it is read back.
        cache_bytes: storages of the cache.
        used_bytes: of those, what was occupied when most was; None where nobody knows.
        host_bytes: of those, what lies in the host's memory while the model is on another device.
        resident_bytes: of the process that made the tokens, where it is not this one and computes on a CPU.
    """

    tokens: Tensor
    step_ns: tuple[int, ...]
    cache_bytes: int | None
    used_bytes: int | None
    host_bytes: int = 0
    resident_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """An engine that has started.

    Args:
        generate: goes on greedily after prompts [B, n], whatever tokens come, from an empty cache.
        facts: columns that the engine knows better than this process.
    """

    generate: Callable[[Tensor], Generated]
    facts: Mapping[str, object]


class BlackBoxEngine(ABC):
    """What makes tokens with a cache of its own."""

    @property
    @abstractmethod
    def is_elsewhere(self) -> bool:
        """Whether another process holds the model and the cache, so that nobody here can weigh them."""

    @abstractmethod
    def check(self, strategy: CacheStrategy) -> None:
        """Refuse a strategy that does not name a cache of this engine.

        Raises:
            ValueError: with the keys to change.
        """

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""

    @abstractmethod
    def unsupported(self, loaded: Loaded) -> str | None:
        """Return why a model cannot be run, or None."""

    @abstractmethod
    def opened(self, loaded: Loaded, strategy: CacheStrategy, run: RunShape) -> AbstractContextManager[Session]:
        """Return the engine started for one model and one shape, and stopped on exit.

        Args:
            loaded: the model.
            strategy: names the cache.
            run: what will be generated, again and again.
        """


def steps_of(started_ns: int, arrivals_ns: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return how long each step of a batch took: it ends when the last row has its token.

    Args:
        started_ns: when the prompts were given.
        arrivals_ns: when each token of each row came.
    """
    ends = [max(step) for step in zip(*arrivals_ns, strict=True)]
    return tuple(after - before for before, after in pairwise([started_ns, *ends]))
