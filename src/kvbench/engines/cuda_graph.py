"""Our own loop whose decode step is recorded once on a GPU and replayed, so that no Python runs between its kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from kvbench.engines.eager import Eager, forward
from kvbench.types import DECODE, ModelView

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from kvbench.cache.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class CudaGraph(Eager):
    """Runs the model's forward as it stands, from the third token on as a CUDA graph.

    The first step of a cache runs as in `Eager`, so that what is loaded or chosen at first use is there; the second one
    is recorded. Steps after which several entries leave at a time are a kind of their own, recorded apart. Prompts, and
    passes over several tokens, are never recorded.

    Args:
        prefill_chunk: as of `Eager`.
    """

    def unsupported(self, view: ModelView) -> str | None:
        """Return why a model's steps cannot be recorded, or None."""
        if view.device.type == "cuda":
            return None
        return (
            f"engine=cuda_graph records what a GPU is told to do, and the model is on {view.device}; set engine=eager "
            f"or model.device=cuda"
        )

    def view(self, view: ModelView) -> ModelView:
        """Return what strategies may know of a prepared model."""
        return replace(view, replays=True)

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

    def record(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what does a step for ids [B, 1]; the cache has counted its token, and nothing of it is done yet."""
        given, graph = ids.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = forward(model, cache, given)

        def replay(ids: Tensor) -> Tensor:
            given.copy_(ids)
            graph.replay()
            return logits.clone()

        return replay
