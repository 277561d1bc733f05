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
        kv_tokens: tokens that the pool has room for, whole pages; 0 for as many as all requests need at once.
    """

    pass_tokens: int
    max_running: int
    kv_tokens: int

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing would ever run."""
        for name, least in (("pass_tokens", 1), ("max_running", 1), ("kv_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"engine.{name} must be at least {least}; got {getattr(self, name)}.")

    def pages(self, run: RunShape, page_tokens: int) -> int:
        """Return how many pages the pool has.

        Args:
            run: a row for each request.
            page_tokens: slots of a page.

        Raises:
            ValueError: if a request would never fit.
        """
        lengths = [length + (run.new_tokens or 0) for length in run.prompt_lengths]
        if self.kv_tokens == 0:
            return sum(-(-length // page_tokens) + 1 for length in lengths)  # one more, to copy to
        pages = self.kv_tokens // page_tokens
        if max(lengths) > pages * page_tokens:
            raise ValueError(
                f"a request may have {max(lengths)} tokens in the end, and engine.kv_tokens={self.kv_tokens} is "
                f"{pages} whole pages of {page_tokens}; raise it, or set it to 0 for as many as all requests need."
            )
        return pages
