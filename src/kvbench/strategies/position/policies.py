"""At which position kept entries are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from kvbench.cache.plan import LayerPlan


class Position(Protocol):
    """At which position kept entries are read."""

    by_rank: ClassVar[bool]
    rerotates: ClassVar[bool]
    clamps: ClassVar[bool]

    def unsupported(self, plans: Sequence[LayerPlan]) -> str | None:
        """Return why these layers cannot be read so, or None."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """Entries keep the position they were written at."""

    by_rank: ClassVar[bool] = False
    rerotates: ClassVar[bool] = False
    clamps: ClassVar[bool] = False

    def unsupported(self, plans: Sequence[LayerPlan]) -> str | None:
        """Return None: every layer can."""
        return None


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Distances count kept entries only, as if what was dropped had never been there.

    With sinks and one recent run it is enough to turn the sinks' keys on by the tokens dropped in between; the keys
    of the recent run and the query stay at their true positions, so every distance is the one of the paper's cache.

    Source: Xiao et al., arXiv:2309.17453, sec. 3.2.
    Deviates: models with learned positions (GPT-2) have nothing to turn; new tokens are read at their rank, while
        entries already held keep the position they were written at.
    """

    by_rank: ClassVar[bool] = True
    rerotates: ClassVar[bool] = False
    clamps: ClassVar[bool] = False

    def unsupported(self, plans: Sequence[LayerPlan]) -> str | None:
        """Return None: what is missing is told with the budget."""
        return None


@dataclass(frozen=True, kw_only=True)
class Rerotated:
    """Kept entries close ranks at the prompt's end: their keys are turned once to positions 0, 1, 2 ...

    New tokens go on at the number of entries kept, so the model never sees a gap.

    Source: Corallo and Papotti (FINCH), arXiv:2408.00167; as KeyRerotationPress in NVIDIA/kvpress turns keys.
    Deviates: where nobody asks the cache for positions (transformers' own generate) new tokens are read at their true
        position, and a gap as wide as what was dropped remains.
    """

    by_rank: ClassVar[bool] = False
    rerotates: ClassVar[bool] = True
    clamps: ClassVar[bool] = False

    def unsupported(self, plans: Sequence[LayerPlan]) -> str | None:
        """Return why keys cannot be turned, or why layers and heads would not agree where new tokens are read."""
        if all(plan.budget is None for plan in plans):
            return None
        if any(plan.shape.rotary is None for plan in plans):
            return (
                "strategy/position=rerotated turns keys, and this model's positions are learned and not rotations; "
                "use strategy/position=original"
            )
        if any(plan.shape.window > 0 for plan in plans):
            return (
                "strategy/position=rerotated moves new tokens, which layers with a sliding window would see at a wrong "
                "distance; use strategy/position=original"
            )
        shares = any(plan.sharer is not None or plan.counts is not None for plan in plans)
        if shares or len({plan.budget for plan in plans}) > 1:
            return (
                "strategy/position=rerotated needs the same number of entries in every layer and head, or they would "
                "not agree where new tokens are read; use strategy/budget=uniform without skip_layers, or "
                "strategy/position=original"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Clamped:
    """What has left the device is read as if it were no further away than the oldest entry that has not.

    Source: Xiao et al. (InfLLM), arXiv:2402.04617, sec. 3.3: no distance is larger than those in the local window.
    Deviates: models with learned positions (GPT-2) have no distances; their keys are read as they are.
    """

    by_rank: ClassVar[bool] = False
    rerotates: ClassVar[bool] = False
    clamps: ClassVar[bool] = True

    def unsupported(self, plans: Sequence[LayerPlan]) -> str | None:
        """Return None: every layer can."""
        return None
