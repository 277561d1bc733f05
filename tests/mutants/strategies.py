"""Strategies whose numbers cannot be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.views import PromptView
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.selection.scorer import ScorerDefaults
from kvbench.types import ModelView, RunShape


class _Hoarder(KVCache):
    """Says that it holds what its layers hold."""

    def hide(self, num_bytes: int) -> None:
        """Keep something besides."""
        self.hidden = torch.zeros(num_bytes, dtype=torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Hoards(CacheStrategy):
    """Keeps a megabyte that its cache does not report."""

    def build(self, view: ModelView, run: RunShape) -> KVCache:
        """Return a cache that hides something."""
        cache = _Hoarder(self.plans(view, run), view, run)
        cache.hide(2**20)
        return cache


@dataclass(frozen=True, kw_only=True)
class LeavesHooks(CacheStrategy):
    """Puts a hook on the model with every cache and never takes it away."""

    model: ClassVar[list[nn.Module]] = []

    def prepare(self, model: nn.Module) -> nn.Module:
        """Remember the model."""
        self.model.append(model)
        return model

    def build(self, view: ModelView, run: RunShape) -> KVCache:
        """Return a cache, and leave a hook."""
        self.model[-1].register_forward_hook(lambda *arguments: None)
        return super().build(view, run)


@dataclass(frozen=True, kw_only=True)
class ChangesIds(CacheStrategy):
    """Reads another prompt than the baseline: the first token is set to 0 in place."""

    ids: ClassVar[list[Tensor]] = []

    def build(self, view: ModelView, run: RunShape) -> KVCache:
        """Return a cache, and change the ids."""
        for ids in self.ids:
            ids[:, 0] = 0
        return super().build(view, run)


class ScoresNothing(ScorerDefaults):
    """Divides nothing by nothing."""

    def prompt(self, view: PromptView) -> Tensor:
        """Return scores that are no numbers."""
        return view.keys[..., 0] * float("nan")


class ScoresTooMuch(ScorerDefaults):
    """Keeps a dimension too many."""

    def prompt(self, view: PromptView) -> Tensor:
        """Return squared norms [B, G, n, 1]."""
        return (view.keys**2).sum(dim=-1, keepdim=True)
