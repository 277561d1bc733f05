"""Time to first token over prompt lengths."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.types import RunShape
from kvbench.workloads.source import TokenSource, positive


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Prompts of several lengths, each followed by one token.

    Args:
        prompt_tokens: lengths, shortest first.
        batch_size: rows.
    """

    prompt_tokens: tuple[int, ...]
    batch_size: int

    text_path = ""
    new_tokens = 1

    def __post_init__(self) -> None:
        """Refuse lengths that mean nothing."""
        if not self.prompt_tokens or list(self.prompt_tokens) != sorted(set(self.prompt_tokens)):
            raise ValueError(f"workload.prompt_tokens must be rising lengths; got {list(self.prompt_tokens)}.")
        positive("workload", prompt_tokens=self.prompt_tokens[0], batch_size=self.batch_size)

    def runs(self) -> list[RunShape]:
        """Return one batch per length."""
        return [RunShape(prompt_lengths=(n,) * self.batch_size, new_tokens=1) for n in self.prompt_tokens]

    def ids(self, source: TokenSource, run: RunShape) -> list[list[int]]:
        """Return prompt and one token of every row [B, prompt + 1]."""
        return source.windows(run.batch_size, run.prompt_tokens + 1)
