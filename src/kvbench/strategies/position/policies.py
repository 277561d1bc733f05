"""At which position kept entries are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Position(Protocol):
    """At which position kept entries are read."""

    by_rank: ClassVar[bool]


@dataclass(frozen=True, kw_only=True)
class Original:
    """Entries keep the position they were written at."""

    by_rank: ClassVar[bool] = False


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
