"""Heads that keep different numbers of entries, known from their scores before a prompt is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import ClassVar

from kvbench.cache.plan import LayerPlan
from kvbench.cache.protocols import Evicted, Scorer, Selector, Sharer
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.budget.rounding import apportion, spread
from kvbench.strategies.budget.scores import HeadScores, Table, find
from kvbench.types import ModelView, RunShape

Counts = tuple[tuple[int | None, ...], ...]  # per row, per KV head
Heads = set[tuple[int, int]]  # layer and KV head


@dataclass(frozen=True, kw_only=True)
class HeadBudget(ABC):
    """Entries per head as the scores of a model's heads say.

    Args:
        scores: file or folder of head scores; "" for where `kvbench calibrate` leaves them.
    """

    limits: ClassVar[bool] = True
    data_dependent: ClassVar[bool] = False
    sharer: ClassVar[Sharer | None] = None
    calibration: ClassVar[str]  # kind of scores

    scores: str

    def unsupported(self, view: ModelView) -> str | None:
        """Return why there are no scores of a model's heads, with the command that makes them; or None."""
        try:
            self.found(view)
        except ValueError as error:
            return str(error)
        return None

    def refusal(self, scorer: Scorer, selector: Selector, evicted: Evicted, *, by_rank: bool) -> str | None:
        """Return why entries cannot move: heads of one layer have not dropped the same number of them; or None."""
        if not by_rank:
            return None
        return (
            "heads that keep different numbers of entries need strategy/position=original; a query is read at one "
            "position for all of them."
        )

    def found(self, view: ModelView) -> HeadScores:
        """Return the scores of a model's heads.

        Raises:
            ValueError: if there are none, or only another model's.
        """
        return find(self.calibration, self.scores, view)

    @abstractmethod
    def counts(
        self, budgets: Sequence[tuple[int, ...] | None], plans: Sequence[LayerPlan], view: ModelView, run: RunShape
    ) -> list[Counts | None]:
        """Return per layer the entries kept of each row and KV head; None in it keeps all of a head.

        Args:
            budgets: what `entries` returned.
            plans: one per layer.
            view: of the model.
            run: how long the rows are.
        """


@dataclass(frozen=True, kw_only=True)
class ScoredHeads(HeadBudget, Uniform):
    """Every head keeps a part of the amount for itself; the rest is one pool, shared out as heads retrieve.

    Source: Fu et al. (HeadKV), arXiv:2410.19258, sec. 3.2; the pool is that of all layers.
    Deviates: what the scorer's window takes is no part of the pool (the authors' code leaves the window out of the
        budget); shares are rounded so that the whole is exact; what a head cannot use because the prompt is too
        short, others get.

    Args:
        scores: as in HeadBudget.
        amount: as in Uniform, the mean over heads and layers.
        unit: as in Uniform.
        skip_layers: as in Uniform.
        beta: 1/beta of each head's entries goes to the pool; at least 1.
        temperature: exponent of the scores; 0 makes all heads equal.
    """

    calibration: ClassVar[str] = "retrieval"

    beta: float
    temperature: float

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        super().__post_init__()
        if not self.beta >= 1:
            raise ValueError(f"strategy.budget.beta must be at least 1; got {self.beta}.")
        if not self.temperature >= 0:
            raise ValueError(f"strategy.budget.temperature must be at least 0; got {self.temperature}.")

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return the mean over heads, the same for every layer that is not skipped."""
        return super().entries(plans, view, run)

    def counts(
        self, budgets: Sequence[tuple[int, ...] | None], plans: Sequence[LayerPlan], view: ModelView, run: RunShape
    ) -> list[Counts | None]:
        """Return the shares of all heads, row by row."""
        table = self.found(view).scores["retrieval"]
        kept = {
            index: most for index, most in enumerate(budgets) if most is not None and view.layers[index].window == 0
        }
        if not kept:
            return [None] * len(budgets)
        weights = [Fraction(score**self.temperature) for index in kept for score in table[index]]
        amounts = next(iter(kept.values()))
        rows = [
            self._row(amount, length, weights, plans[min(kept)])
            for amount, length in zip(amounts, run.prompt_lengths, strict=True)
        ]
        out: list[Counts | None] = [None] * len(budgets)
        first = 0
        for index in kept:
            last = first + view.layers[index].kv_heads
            out[index] = tuple(tuple(row[first:last]) for row in rows)
            first = last
        return out

    def _row(self, amount: int, length: int, weights: Sequence[Fraction], plan: LayerPlan) -> list[int]:
        """Return what each head keeps of one row."""
        window = plan.num_reserved + plan.selector.num_sink + plan.selector.recent(amount)
        spare = amount - window
        if spare <= 0 or amount >= length:
            return [amount] * len(weights)
        pooled = int(spare / Fraction(str(self.beta)))
        own = amount - pooled
        shares = apportion(weights, pooled * len(weights))
        return spread([own + share for share in shares], length)


@dataclass(frozen=True, kw_only=True)
class FullOrStreaming(HeadBudget):
    """Some heads keep everything; the others keep sinks and recent tokens.

    Args:
        scores: as in HeadBudget.
        recent: tokens that heads keep beside the sinks, which strategy.selector.num_sink counts.
        recent_share: the same as a fraction of the row's prompt; the larger of the two counts.
    """

    recent: int
    recent_share: float

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.recent < 1:
            raise ValueError(f"strategy.budget.recent must be at least 1; got {self.recent}.")
        _share("recent_share", self.recent_share)

    @abstractmethod
    def full(self, scores: HeadScores, layers: Sequence[int]) -> Heads:
        """Return the heads that keep everything.

        Args:
            scores: of the model's heads.
            layers: that are no sliding ones.
        """

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return what a streaming head keeps; None where a layer has none."""
        full = self._full(view)
        share = Fraction(str(self.recent_share))
        fixed = plans[0].selector.num_sink + plans[0].num_reserved
        kept = tuple(fixed + max(self.recent, int(share * length)) for length in run.prompt_lengths)
        return [
            None if all((plan.index, head) in full for head in range(plan.shape.kv_heads)) else kept for plan in plans
        ]

    def counts(
        self, budgets: Sequence[tuple[int, ...] | None], plans: Sequence[LayerPlan], view: ModelView, run: RunShape
    ) -> list[Counts | None]:
        """Return None for a head that keeps everything, and what a streaming head keeps for the others."""
        full = self._full(view)
        return [
            None if most is None or plan.shape.window > 0 else _counts(plan, most, full)
            for plan, most in zip(plans, budgets, strict=True)
        ]

    def _full(self, view: ModelView) -> Heads:
        return self.full(self.found(view), [index for index, layer in enumerate(view.layers) if layer.window == 0])


@dataclass(frozen=True, kw_only=True)
class GatedHeads(FullOrStreaming):
    """Heads whose gate is above a quantile of all gates keep everything.

    Source: Xiao et al. (DuoAttention), arXiv:2410.10819, sec. 2; gates estimated as NVIDIA/kvpress does.
    Deviates: gates are not learned but estimated (a file of learned ones may be given); equal gates are not told
        apart by noise: all heads at the quantile keep everything, unless their gate is 0, and none then do.

    Args:
        scores: as in HeadBudget.
        recent: as in FullOrStreaming.
        recent_share: as in FullOrStreaming.
        sparsity: quantile, the share of heads that stream; 0 for none, 1 for all.
    """

    calibration: ClassVar[str] = "gate"

    sparsity: float

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        super().__post_init__()
        _share("sparsity", self.sparsity)

    def full(self, scores: HeadScores, layers: Sequence[int]) -> Heads:
        """Return the heads above the quantile."""
        gates = dict(_heads(scores.scores["gate"], layers))
        if self.sparsity == 0:
            return set(gates)
        ranked = sorted(map(Fraction, gates.values()))
        at = Fraction(str(self.sparsity)) * (len(ranked) - 1)
        below, above = ranked[int(at)], ranked[ceil(at)]
        quantile = below + (at - int(at)) * (above - below)
        return {head for head, gate in gates.items() if gate >= quantile and gate > 0 and self.sparsity < 1}


@dataclass(frozen=True, kw_only=True)
class EchoAndInduction(FullOrStreaming):
    """Heads that look back at repetitions of a token, or at what followed them, keep everything.

    Source: Tang et al. (RazorAttention), arXiv:2407.15891, sec. 3.2 and algorithm 1.
    Deviates: with grouped queries a KV head does what the best of its query heads does; shares of heads are rounded
        up, so that a small model has at least one of each.

    Args:
        scores: as in HeadBudget.
        recent: as in FullOrStreaming.
        recent_share: as in FullOrStreaming.
        induction_share: of all heads, those with the highest induction scores.
        echo_share: of all heads, those with the highest echo scores.
    """

    calibration: ClassVar[str] = "repetition"

    induction_share: float
    echo_share: float

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        super().__post_init__()
        _share("induction_share", self.induction_share)
        _share("echo_share", self.echo_share)

    def full(self, scores: HeadScores, layers: Sequence[int]) -> Heads:
        """Return the heads that repeat most; where scores tie, the earlier ones."""
        best: Heads = set()
        for name, share in (("induction", self.induction_share), ("echo", self.echo_share)):
            ranked = sorted(_heads(scores.scores[name], layers), key=lambda item: -item[1])
            best |= {head for head, _ in ranked[: ceil(Fraction(str(share)) * len(ranked))]}
        return best


def _heads(table: Table, layers: Sequence[int]) -> Iterable[tuple[tuple[int, int], float]]:
    return (((layer, head), score) for layer in layers for head, score in enumerate(table[layer]))


def _counts(plan: LayerPlan, most: Sequence[int], full: Heads) -> Counts:
    heads = range(plan.shape.kv_heads)
    return tuple(tuple(None if (plan.index, head) in full else entries for head in heads) for entries in most)


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"strategy.budget.{name} must be between 0 and 1; got {value}.")
