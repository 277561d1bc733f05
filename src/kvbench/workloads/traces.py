"""Public traces of requests, made as small as a model needs them.

Two forms are known, and told apart by what they hold. Mooncake (arXiv:2407.00079) has JSON lines with `timestamp` [ms],
`input_length`, `output_length` and `hash_ids`, an id for each block of 512 tokens, the last of which may be begun only:
prompts whose ids begin alike begin alike. Azure LLM inference has a CSV file of times and lengths; nothing is shared.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from kvbench.workloads.pieces import Piece, Planned

BLOCK = 512
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
_MOONCAKE = ("timestamp", "input_length", "output_length", "hash_ids")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What a line says: a time [s], lengths [tokens], and ids of blocks, or None where the form has none."""

    time_s: float
    prompt_tokens: int
    new_tokens: int
    blocks: tuple[int, ...] | None

    def __post_init__(self) -> None:
        """Refuse what no request can have."""
        if self.prompt_tokens < 1 or self.new_tokens < 1:
            raise ValueError(f"lengths must be at least 1; got {self.prompt_tokens} and {self.new_tokens}.")
        num_blocks = -(-self.prompt_tokens // BLOCK)
        if self.blocks is not None and len(self.blocks) != num_blocks:
            raise ValueError(
                f"hash_ids must be {num_blocks}, one for each {BLOCK} of {self.prompt_tokens} tokens; got "
                f"{len(self.blocks)}."
            )

    def planned(self, number: int, start_s: float, *, length_scale: float, time_scale: float) -> Planned:
        """Return the request, smaller and sooner."""
        block = round(BLOCK * length_scale)
        scale = length_scale if self.blocks is None else block / BLOCK
        prompt, new = (max(1, round(tokens * scale)) for tokens in (self.prompt_tokens, self.new_tokens))
        pieces: list[Piece] = [(number, prompt)] if self.blocks is None else [(name, block) for name in self.blocks]
        arrival_s = (self.time_s - start_s) * time_scale
        return Planned(pieces=tuple(pieces), prompt_tokens=prompt, new_tokens=new, arrival_s=arrival_s)


def read(path: str, count: int, *, length_scale: float, time_scale: float) -> list[Planned]:
    """Return the first requests of a trace.

    Args:
        path: of the file.
        count: how many.
        length_scale: what lengths are multiplied by; a block keeps a whole number of tokens, and each length one.
        time_scale: what times are multiplied by.

    Raises:
        ValueError: if the file is no trace, or has fewer.
    """
    lines = _first_lines(path, count + 1)
    is_azure = bool(lines) and lines[0][1] == AZURE
    entries: list[_Entry] = []
    for number, line in lines[1:] if is_azure else lines[:count]:
        try:
            entries.append(_azure(line) if is_azure else _mooncake(line))
            if entries[-1].time_s < entries[max(0, len(entries) - 2)].time_s:
                raise ValueError("its time lies before that of the line above.")
        except ValueError as error:
            raise ValueError(f"workload.trace={path}, line {number}: {error}") from error
    if len(entries) < count:
        raise ValueError(f"workload.trace={path} has {len(entries)} requests; lower workload.num_requests={count}.")
    if entries[0].blocks is not None and round(BLOCK * length_scale) < 1:
        raise ValueError(
            f"workload.length_scale must leave a token of {BLOCK}, which is a block of workload.trace={path}; got "
            f"{length_scale}."
        )
    scales = {"length_scale": length_scale, "time_scale": time_scale}
    return [entry.planned(number, entries[0].time_s, **scales) for number, entry in enumerate(entries)]


def _first_lines(path: str, count: int) -> list[tuple[int, str]]:
    """Return the first lines that hold something, with their numbers; traces are larger than what is read of them."""
    if not Path(path).is_file():
        raise ValueError(f"workload.trace={path} is no file.")
    try:
        with Path(path).open(encoding="utf-8") as file:
            lines = ((number, line.strip()) for number, line in enumerate(file, 1))
            return list(islice((line for line in lines if line[1]), count))
    except UnicodeDecodeError as error:
        raise ValueError(f"workload.trace={path} is not UTF-8 text.") from error


def _azure(line: str) -> _Entry:
    try:
        stamp, prompt, new = line.split(",")
        time = datetime.fromisoformat(stamp)
        lengths = int(prompt), int(new)
    except ValueError as error:
        example = "2023-11-16 18:17:03.9799600,4808,10"
        raise ValueError(f"must hold {AZURE}, such as {example}; got {line!r}.") from error
    time_s = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return _Entry(time_s=time_s, prompt_tokens=lengths[0], new_tokens=lengths[1], blocks=None)


def _mooncake(line: str) -> _Entry:
    try:
        found = json.loads(line)
        time_ms, prompt, new, blocks = (found[name] for name in _MOONCAKE)
        is_known = isinstance(blocks, list) and {type(number) for number in (prompt, new, *blocks)} == {int}
        is_known = is_known and type(time_ms) in (int, float) and math.isfinite(time_ms)
    except (ValueError, KeyError, TypeError):
        is_known = False
    if not is_known:
        raise ValueError(
            f"must be a JSON object with {', '.join(_MOONCAKE)} (Mooncake), or the file has to begin with {AZURE} "
            f"(Azure); got {line[:80]!r}."
        )
    return _Entry(time_s=time_ms / 1000, prompt_tokens=prompt, new_tokens=new, blocks=tuple(blocks))
