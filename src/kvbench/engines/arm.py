"""A strategy on a model through an engine: what is timed, weighed and asked questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.packing_error import squares
from kvbench.engines.eager import Eager
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison.

    Args:
        name: "strategy" or "baseline".
        model: prepared by the strategy.
        view: of that model.
        strategy: what is stored.
        engine: how tokens get made.
    """

    name: str
    model: nn.Module
    view: ModelView
    strategy: CacheStrategy
    engine: Eager

    def cache(self, run: RunShape) -> KVCache:
        """Return an empty cache."""
        return self.strategy.build(self.view, run)

    def prefill(self, cache: KVCache, ids: Tensor) -> Tensor:
        """Read the prompt [B, n] and return the logits after it [B, V]."""
        with self.strategy.attach(self.model, cache):
            return self.engine.prefill(self.model, cache, ids)

    def packing_squares(self, cache: KVCache, full: KVCache) -> dict[str, tuple[float, float]]:
        """Return what packing did to a prompt, as `squares` does; nothing where entries differ in other ways too."""
        made = self.strategy
        changes = made.evicted.merges or made.position.by_rank or made.position.rerotates
        if made.trigger.packs_pieces:  # what later pieces are made of was packed
            return {}
        tells = not made.codec.is_exact and made.transform.is_exact and not (made.budget.limits and changes)
        return squares(cache, full) if tells else {}

    def step(self, cache: KVCache, ids: Tensor) -> Tensor:
        """Read the next tokens [B, T] and return the logits after them [B, V]."""
        return self.engine.step(self.model, cache, ids)


class PrefillArm:
    """Reads the same prompt into a new cache again and again; building the cache is not timed.

    Args:
        arm: which.
        run: shape of the batch.
        prompt: ids [B, n].
    """

    def __init__(self, arm: Arm, run: RunShape, prompt: Tensor) -> None:
        self.arm, self.run, self.prompt = arm, run, prompt
        self.cache: KVCache | None = None

    def restore(self) -> None:
        """Drop the last cache and build an empty one."""
        self.cache = None
        self.cache = self.arm.cache(self.run)

    def step(self) -> None:
        """Read the prompt."""
        assert self.cache is not None
        self.arm.prefill(self.cache, self.prompt)


class DecodeArm:
    """Decodes the same tokens from the same context again and again.

    Args:
        arm: which.
        run: shape of the batch.
        ids: prompt and continuation [B, prompt + new].
    """

    def __init__(self, arm: Arm, run: RunShape, ids: Tensor) -> None:
        self.arm, self.start = arm, run.prompt_tokens
        self.cache = arm.cache(run)
        arm.prefill(self.cache, ids[:, : self.start])
        self.tokens = [ids[:, at : at + 1].contiguous() for at in range(self.start, ids.shape[1])]
        self._snapshot: list[Any] = self.cache.snapshot()
        self._done = 0
        self.decoded = 0  # steps in all, those that were gone back on included

    def restore(self) -> None:
        """Go back to the end of the prompt, in the same storage."""
        self.cache.restore(self._snapshot)
        self._done = 0

    def step(self) -> None:
        """Decode one token."""
        self.arm.step(self.cache, self.tokens[self._done])
        self._done += 1
        self.decoded += 1


def generate(arm: Arm, run: RunShape, prompt: Tensor) -> Tensor:
    """Return greedy tokens [B, new_tokens] after a prompt [B, n]."""
    assert run.new_tokens is not None
    cache = arm.cache(run)
    token = arm.prefill(cache, prompt).argmax(dim=-1, keepdim=True)
    tokens = [token]
    for _ in range(run.new_tokens - 1):
        token = arm.step(cache, token).argmax(dim=-1, keepdim=True)
        tokens.append(token)
    return torch.cat(tokens, dim=1)
