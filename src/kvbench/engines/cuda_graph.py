"""Our own loop whose decode step is recorded once on a GPU and replayed, so that no Python runs between its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kvbench.engines.eager import forward
from kvbench.engines.replaying import Replaying

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from kvbench.cache.kv_cache import KVCache
    from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class CudaGraph(Replaying):
    """Runs the model's forward as it stands, from the third token on as a CUDA graph.

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
