"""Read a prompt of a given length, then decode."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.types import RunShape
from kvbench.workloads.source import TokenSource, positive


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Held-out text (random ids where there is no tokenizer), teacher-forced.

    Args:
        prompt_tokens: tokens read before decoding.
        new_tokens: tokens decoded after them.
        batch_size: rows.
    """

    prompt_tokens: int
    new_tokens: int
    batch_size: int

    text_path = ""

    def __post_init__(self) -> None:
        """Refuse lengths that mean nothing."""
        positive("workload", prompt_tokens=self.prompt_tokens, new_tokens=self.new_tokens, batch_size=self.batch_size)

    def runs(self) -> list[RunShape]:
        """Return the shape of the one batch."""
        return [RunShape(prompt_lengths=(self.prompt_tokens,) * self.batch_size, new_tokens=self.new_tokens)]

    def ids(self, source: TokenSource, run: RunShape) -> list[list[int]]:
        """Return prompt and continuation of every row [B, prompt + new]."""
        return source.windows(run.batch_size, run.prompt_tokens + self.new_tokens)
