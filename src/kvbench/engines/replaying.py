"""Our own loop whose decode step is recorded once and replayed."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvbench.engines.eager import Eager
from kvbench.types import DECODE, ModelView

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from kvbench.cache.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class Replaying(Eager):
    """Runs the model's forward as it stands, from the third token on as it was recorded.

    The first step of a cache runs as in `Eager`, so that what is loaded or chosen at first use is there; the second one
    is recorded. Steps after which several entries leave at a time are a kind of their own, recorded apart. Prompts, and
    passes over several tokens, are never recorded.

    Args:
        prefill_chunk: as of `Eager`.
    """

    def view(self, view: ModelView) -> ModelView:
        """Return what strategies may know of a prepared model."""
        return replace(super().view(view), replays=True)

    def step(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Tensor:
        """Read the next tokens [B, T] and return the logits after them [B, V]."""
        kind = cache.kind
        if ids.shape[1] > 1 or kind not in cache.recorded:
            if ids.shape[1] == 1:
                cache.recorded[kind] = None
            return super().step(model, cache, ids)
        cache.begin(DECODE)
        replay = cache.recorded[kind]
        if replay is None:
            replay = cache.recorded[kind] = self.record(model, cache, ids)
        else:
            cache.skip()
        return replay(ids)

    @abstractmethod
    def record(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what does a step for ids [B, 1]; the cache has counted its token, and nothing of it is done yet."""
