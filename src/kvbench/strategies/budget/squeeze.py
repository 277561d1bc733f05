"""Layers whose attention changes little keep little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kvbench.cache.plan import LayerPlan
from kvbench.cache.views import PromptView
from kvbench.models.view import attention_of
from kvbench.strategies.budget.layers import LayerShares
from kvbench.strategies.budget.rounding import apportion, least_budget

if TYPE_CHECKING:
    from kvbench.cache.kv_cache import KVCache
    from kvbench.cache.layer import CacheLayer

GROUPS = 3


@dataclass(frozen=True, kw_only=True)
class Squeeze(LayerShares):
    """Of three groups of layers, the one whose hidden states attention changes least gives most of its budget away.

    Layers are grouped by the mean cosine, over the prompt's tokens, between hidden states before attention and after
    it with the residual stream.

    Source: Wang et al. (SqueezeAttention), arXiv:2404.04793, algorithm 1; hetailang/SqueezeAttention.
    Deviates: three exact groups on the line instead of k-means from random starts; rows of a batch are grouped apart;
        parts add up to the amount exactly and hold what is protected; models that normalise what attention adds are
        compared before that norm.

    Args:
        amount: as in LayerShares.
        unit: as in Uniform.
        skip_layers: layers that keep everything.
        share_of_least: of the amount, what a layer of the group that changes least keeps.
    """

    share_of_least: float

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        super().__post_init__()
        if not 0 < self.share_of_least <= 1:
            raise ValueError(
                f"strategy.budget.share_of_least must be above 0 and at most 1; got {self.share_of_least}."
            )

    @contextmanager
    def watch(self, model: nn.Module, cache: KVCache) -> Iterator[None]:
        """Tell each layer of the cache what its decoder layer is given."""
        with ExitStack() as hooks:
            for index, layer in enumerate(cache.layers):
                hook = _decoder_layer(model, index).register_forward_pre_hook(_teller(layer), with_kwargs=True)
                hooks.callback(hook.remove)
            yield

    def statistic(self, view: PromptView) -> Tensor:
        """Return the mean cosine between hidden states before and after attention [B].

        Raises:
            ValueError: if the hidden states were not noted.
        """
        if view.similarity is None:
            raise ValueError(
                "strategy/budget=squeeze needs hidden states and the output projection of every attention layer: read "
                "the prompt within strategy.attach(model, cache), or use another strategy/budget."
            )
        return view.similarity

    def parts(self, shown: Sequence[float], mean: int, plan: LayerPlan) -> list[int]:
        """Return a small part for each layer that changes least, and what they give to the others, in equal parts."""
        least = most_similar(shown)
        few = max(least_budget(plan, mean), int(Fraction(str(self.share_of_least)) * mean))
        others = [index for index in range(len(shown)) if index not in least]
        given = apportion([Fraction(1)] * len(others), mean * len(shown) - few * len(least))
        counts = dict.fromkeys(least, few) | dict(zip(others, given, strict=True))
        return [counts[index] for index in range(len(shown))]


def most_similar(values: Sequence[float]) -> set[int]:
    """Return the group with the highest of three groups on a line; fewer where fewer values differ, none for one.

    The groups have the least sum of squares around their means; ties go to the larger highest group.
    """
    distinct = sorted(set(values))
    if len(distinct) == 1:
        return set()
    cuts = combinations(range(1, len(distinct)), min(GROUPS, len(distinct)) - 1)
    lowest = distinct[min(cuts, key=lambda cut: (_squares(values, [distinct[at] for at in cut]), cut))[-1]]
    return {index for index, value in enumerate(values) if value >= lowest}


def _squares(values: Sequence[float], starts: Sequence[float]) -> float:
    """Return the sum of squared distances to the mean of each group; each but the first starts at one of `starts`."""
    groups: dict[int, list[float]] = {}
    for value in values:
        groups.setdefault(sum(value >= start for start in starts), []).append(value)
    means = {name: sum(group) / len(group) for name, group in groups.items()}
    return sum((value - means[name]) ** 2 for name, group in groups.items() for value in group)


def _decoder_layer(model: nn.Module, index: int) -> nn.Module:
    found = attention_of(model, index)
    if found is None:
        raise ValueError(
            f"strategy/budget=squeeze cannot tell the attention of layer {index}; use another strategy/budget."
        )
    return next(module for module in model.modules() if found[0] in module.children())


def _teller(layer: CacheLayer) -> Any:
    def tell(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not layer.stores:  # the prompt is still being read
            layer.hidden = given[0] if given else keywords["hidden_states"]

    return tell
