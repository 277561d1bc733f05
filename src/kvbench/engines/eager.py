"""Our own loop: one forward pass per token, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import linear

from kvbench.models.normed import normed, renorm
from kvbench.models.siblings import fuse
from kvbench.types import DECODE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kvbench.cache.kv_cache import KVCache
    from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Eager:
    """Runs the model's forward as it stands.

    A token is multiplied once by the weights of queries, keys and values, and once by those of both halves of a gated
    layer. On a CPU its norms by mean squares are shorter.

    Args:
        prefill_chunk: tokens of the prompt per forward pass; 0 for the whole prompt at once. Strategies act at the
            prompt's end, but for strategy/trigger=every_chunk, which packs every piece.
    """

    in_rows: ClassVar[bool] = False  # as of `lay_out`

    prefill_chunk: int

    def __post_init__(self) -> None:
        """Refuse chunks that mean nothing."""
        if self.prefill_chunk < 0:
            raise ValueError(f"engine.prefill_chunk must be 0 (the whole prompt) or more; got {self.prefill_chunk}.")

    def unsupported(self, view: ModelView) -> str | None:
        """Return None: every model can."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model itself, with one product for linear layers that read the same token, and shorter norms."""
        fuse(model, lambda weight, bias: partial(linear, weight=weight, bias=bias))
        renorm(model, normed)
        return model

    def view(self, view: ModelView) -> ModelView:
        """Return what strategies may know of a prepared model."""
        return view

    def prefill(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Tensor:
        """Read the prompt [B, n] and return the logits after it [B, V]."""
        for step, columns in cache.prompt_passes(ids.shape[1], self.prefill_chunk):
            cache.begin(step)
            out = forward(model, cache, ids[:, columns])
            if step.phase == "prefill":
                logits = out
        return logits

    def step(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Tensor:
        """Read the next tokens [B, T] and return the logits after them [B, V]."""
        cache.begin(DECODE)
        return forward(model, cache, ids)


def forward(model: nn.Module, cache: KVCache, ids: Tensor) -> Tensor:
    """Read tokens [B, T] and return the logits after them [B, V]; the cache was told what pass it is."""
    out = model(
        ids,
        past_key_values=cache,
        use_cache=True,
        position_ids=cache.position_ids(ids.shape[1]),
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1]
    return logits
