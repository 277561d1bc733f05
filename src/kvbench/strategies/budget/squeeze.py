"""Layers whose attention changes little keep little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from kvbench.cache.protocols import PromptView, Scored, Sharer
from kvbench.models.view import attention_of
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.budget.rounding import apportion, least_budget, spread

if TYPE_CHECKING:
    from kvbench.cache.kv_cache import KVCache
    from kvbench.cache.layer import CacheLayer

GROUPS = 3


@dataclass(frozen=True, kw_only=True)
class Squeeze(Uniform):
    """Of three groups of layers, the one whose hidden states attention changes least gives most of its budget away.

    Layers are grouped by the mean cosine, over the prompt's tokens, between hidden states before attention and after
    it with the residual stream.

    Source: Wang et al. (SqueezeAttention), arXiv:2404.04793, algorithm 1; hetailang/SqueezeAttention.
    Deviates: three exact groups on the line instead of k-means from random starts; rows of a batch are grouped apart;
        parts add up to the amount exactly and hold what is protected; models that normalise what attention adds are
        compared before that norm.

    Args:
        amount: as in Uniform, the mean over the layers that do not keep everything.
        unit: as in Uniform.
        skip_layers: layers that keep everything.
        share_of_least: of the amount, what a layer of the group that changes least keeps.
    """

    scope: ClassVar[Literal["layer", "model"]] = "model"

    share_of_least: float

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        super().__post_init__()
        if not 0 < self.share_of_least <= 1:
            raise ValueError(
                f"strategy.budget.share_of_least must be above 0 and at most 1; got {self.share_of_least}."
            )

    @property
    def sharer(self) -> Sharer:
        """The budget itself."""
        return self

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

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return the entries each layer keeps of each row, the same in all its heads."""
        similar = [layer.statistic.tolist() for layer in layers if layer.statistic is not None]
        rows = [self._layers(layers, [mine[row] for mine in similar], row) for row in range(len(layers[0].lengths))]
        return [[[kept[at]] * layer.score.shape[1] for kept in rows] for at, layer in enumerate(layers)]

    def _layers(self, layers: Sequence[Scored], similar: Sequence[float], row: int) -> list[int | None]:
        plan, length = layers[0].plan, layers[0].lengths[row]
        assert plan.budget is not None
        mean, most = plan.budget[row], length + plan.num_reserved
        if mean >= most:
            return [mean] * len(layers)
        least = most_similar(similar)
        few = max(least_budget(plan, mean), int(Fraction(str(self.share_of_least)) * mean))
        others = [index for index in range(len(layers)) if index not in least]
        parts = apportion([Fraction(1)] * len(others), mean * len(layers) - few * len(least))
        counts = dict.fromkeys(least, few) | dict(zip(others, parts, strict=True))
        return list(spread([counts[index] for index in range(len(layers))], most))


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
