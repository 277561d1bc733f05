"""Where token ids come from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.workloads.recall import RecallTasks

_MOST_CHARACTERS = 10_000_000  # of a parquet file: more is cut into windows than anybody scores


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """Running text as token ids, or random ids where the model has no tokenizer.

    Args:
        prefix: ids the tokenizer puts before every text.
        text: ids of the text; empty for random ids.
        vocabulary: number of token ids.
        seed: of windows and random ids.
        name: what the text is, for messages.
        tasks: recall tasks, or None where there is no tokenizer.
        tokenizer: of the model (transformers'), or None.
    """

    prefix: tuple[int, ...]
    text: tuple[int, ...]
    vocabulary: int
    seed: int
    name: str
    tasks: RecallTasks | None
    tokenizer: Any = None

    def windows(self, count: int, tokens: int) -> list[list[int]]:
        """Return windows of exactly `tokens` ids, spread evenly over the text, prefix included.

        Raises:
            ValueError: if the text is too short.
        """
        if not self.text:
            rng = random.Random(self.seed)
            return [[rng.randrange(self.vocabulary) for _ in range(tokens)] for _ in range(count)]
        need = tokens - len(self.prefix)
        spare = len(self.text) - need
        if spare < 0:
            raise ValueError(
                f"{self.name} has {len(self.text)} tokens, {need} are needed; lower workload.prompt_tokens or "
                f"workload.new_tokens, or set workload.path to a longer file."
            )
        starts = [spare * index // max(1, count - 1) if count > 1 else 0 for index in range(count)]
        return [[*self.prefix, *self.text[start : start + need]] for start in starts]


def read_text(path: str) -> str:
    """Return the text of a file: all of it, or the first 10 million characters of a parquet file's column "text".

    Rows of a parquet file stand an empty line apart.

    Raises:
        ValueError: if there is none to read.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"workload.path={path} is no file.")
    try:
        text = _column(file) if file.suffix == ".parquet" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"workload.path={path} is not UTF-8 text.") from error
    if not text.strip():
        raise ValueError(f"workload.path={path} is empty.")
    return text


def _column(file: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parts = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"workload.path={file} is no parquet file.") from error
    if "text" not in parts.schema_arrow.names:
        raise ValueError(f"workload.path={file} has no column 'text'; it has {', '.join(parts.schema_arrow.names)}.")
    rows: list[str] = []
    for batch in parts.iter_batches(columns=["text"]):
        rows += [row or "" for row in batch.column("text").to_pylist()]
        if sum(map(len, rows)) > _MOST_CHARACTERS:
            break
    return "\n\n".join(rows)[:_MOST_CHARACTERS]


def positive(section: str, **numbers: int) -> None:
    """Raise a ValueError that names the key of the first number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{section}.{name} must be at least 1; got {number}.")


def no_tokenizer(workload: str) -> ValueError:
    """Return what to raise where a workload is made of text and nobody knows how the model reads it."""
    return ValueError(
        f"workload={workload} needs a tokenizer; random weights have none, nor has a folder without its files. "
        f"Use workload=decode."
    )
