"""What scorers have in common that judge by another scorer."""

from __future__ import annotations

from kvbench.cache.protocols import Scorer


def voters_of(base: Scorer, tokens: int) -> int:
    """Return how many of the last queries a base needs that is asked once, at the end of the prompt.

    What adds up over the chunks of a prompt cannot be asked chunk by chunk from within another scorer: all queries
    have to be at hand instead.
    """
    return tokens if base.accumulates else base.voters(tokens)
