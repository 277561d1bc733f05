"""Continuous batching, as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.types import RunShape


@dataclass(frozen=True, kw_only=True)
class Batcher:
    """Iteration-level batching with chunked prefill, admission by memory, and preemption by recomputing.

    Source: Yu et al. (Orca), OSDI 2022, sec. 4; Kwon et al. (PagedAttention), arXiv:2309.06180, sec. 4.5; Agrawal et
        al. (Sarathi-Serve), arXiv:2403.02310, sec. 4.

    Args:
        pass_tokens: most tokens that a pass reads, of all requests together.
        max_running: most requests under way at once.
        kv_tokens: tokens that the pool has room for, whole pages; null for enough for all requests at once.
    """

    pass_tokens: int
    max_running: int
    kv_tokens: int | None

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing would ever run."""
        for name in ("pass_tokens", "max_running", "kv_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"engine.{name} must be at least 1; got {value}.")

    def pages(self, run: RunShape, page_tokens: int) -> int:
        """Return how many pages the pool has.

        Args:
            run: a row for each request.
            page_tokens: slots of a page.
        """
        if self.kv_tokens is not None:
            return max(1, self.kv_tokens // page_tokens)
        new = run.new_tokens or 0
        return sum(-(-(length + new) // page_tokens) + 1 for length in run.prompt_lengths)  # one more to copy to
