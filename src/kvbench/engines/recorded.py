"""The compiled engine, whose decode step is recorded once and replayed, so that none of the model's Python runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.engines import tape
from kvbench.engines.compiled import Compiled
from kvbench.engines.replaying import Replaying

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from kvbench.cache.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class Recorded(Replaying, Compiled):
    """Does what `Compiled` does, from the third token on as a list of operations on tensors that stay where they are.

    What comes of every operation of a step is kept until the next one writes it anew.

    Args:
        prefill_chunk: as of `Eager`.
    """

    def record(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what does a step for ids [B, 1]; the cache has counted its token, and nothing of it is done yet."""
        return tape.recorded(model, cache, ids)
