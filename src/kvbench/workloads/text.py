"""Read a text file, then decode its continuation."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.types import RunShape
from kvbench.workloads.source import TokenSource, no_tokenizer, positive, read_text


@dataclass(frozen=True, kw_only=True)
class Text:
    """Windows of a file, teacher-forced.

    Args:
        path: UTF-8 text file; "" for the held-out text.
        prompt_tokens: tokens read before decoding.
        new_tokens: tokens decoded after them.
        batch_size: rows, spread over the file.
    """

    path: str
    prompt_tokens: int
    new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse missing files and lengths that mean nothing."""
        positive("workload", prompt_tokens=self.prompt_tokens, new_tokens=self.new_tokens, batch_size=self.batch_size)
        if self.path:
            read_text(self.path)

    @property
    def text_path(self) -> str:
        """The file that is read."""
        return self.path

    def runs(self) -> list[RunShape]:
        """Return the shape of the one batch."""
        return [RunShape(prompt_lengths=(self.prompt_tokens,) * self.batch_size, new_tokens=self.new_tokens)]

    def ids(self, source: TokenSource, run: RunShape) -> list[list[int]]:
        """Return prompt and continuation of every row [B, prompt + new].

        Raises:
            ValueError: if there is no tokenizer, or the file is too short.
        """
        if not source.text:
            raise no_tokenizer("text")
        return source.windows(run.batch_size, run.prompt_tokens + self.new_tokens)
