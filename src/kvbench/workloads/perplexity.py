"""Loss of what follows in a text, fed token by token through the compressed cache."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.types import RunShape
from kvbench.workloads.hub import hub_file
from kvbench.workloads.source import TokenSource, no_tokenizer, positive, read_text

HELD_OUT = "held_out"
DATASETS = {  # name -> data set, commit, file of its test split
    "wikitext2": (
        "Salesforce/wikitext",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    ),
    "pg19": (
        "emozilla/pg19",
        "c021754c8e01c5b1cc83a1f549c1f97fbbb756b8",
        "data/test-00000-of-00001-29a571947c0b5ccc.parquet",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Windows of a text: what they begin with is compressed, what follows is scored.

    Args:
        dataset: "held_out" for the embedded text, "wikitext2", "pg19", or one on the hub as owner/name.
        revision: commit of a data set that is named by its owner.
        file: in that data set.
        path: file on this machine, read instead of a data set; "" for none.
        prompt_tokens: tokens of each window that are read and compressed.
        new_tokens: tokens after them; the first only enters the cache, the others are scored.
        windows: spread evenly over the text.
        batch_size: rows that are timed.
    """

    dataset: str
    revision: str
    file: str
    path: str
    prompt_tokens: int
    new_tokens: int
    windows: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse data sets and lengths that cannot be, and files that are not there."""
        numbers = {name: getattr(self, name) for name in ("prompt_tokens", "windows", "batch_size")}
        positive("workload", **numbers)
        if self.new_tokens < 2:
            raise ValueError(
                f"workload.new_tokens must be at least 2: the first only enters the cache; got {self.new_tokens}."
            )
        if self.path:
            read_text(self.path)
        elif self.dataset in (HELD_OUT, *DATASETS):
            if self.revision or self.file:
                raise ValueError(
                    f"workload.revision and workload.file go with a data set named as owner/name; "
                    f"workload.dataset={self.dataset} has its own."
                )
        elif "/" not in self.dataset:
            raise ValueError(
                f"workload.dataset must be {HELD_OUT}, {', '.join(DATASETS)} or owner/name; got {self.dataset!r}."
            )
        elif not (self.revision and self.file):
            raise ValueError(
                f"workload.dataset={self.dataset} needs workload.revision=<commit> and workload.file=<.parquet or .txt "
                f"in it>, so that the same text is read for ever."
            )

    @property
    def text_path(self) -> str:
        """The file that is read; "" for the embedded text."""
        if self.path or self.dataset == HELD_OUT:
            return self.path
        return str(hub_file(*DATASETS.get(self.dataset, (self.dataset, self.revision, self.file))))

    def bring(self) -> None:
        """Bring the text, or say which file is missing."""
        if self.text_path:
            read_text(self.text_path)

    def runs(self) -> list[RunShape]:
        """Return the shape of the one batch."""
        return [RunShape(prompt_lengths=(self.prompt_tokens,) * self.batch_size, new_tokens=self.new_tokens)]

    def ids(self, source: TokenSource, run: RunShape) -> list[list[int]]:
        """Return prompt and continuation of every row [B, prompt + new]."""
        return self._windows(source, run.batch_size)

    def scored(self, source: TokenSource) -> list[list[int]]:
        """Return the windows that are scored [windows, prompt + new]."""
        return self._windows(source, self.windows)

    def _windows(self, source: TokenSource, count: int) -> list[list[int]]:
        if not source.text:
            raise no_tokenizer("perplexity")
        return source.windows(count, self.prompt_tokens + self.new_tokens)
