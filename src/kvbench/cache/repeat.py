"""Reading a prompt again, a chunk at a time, behind itself: for scorers that ask what of it is needed for that."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.cache.protocols import Repeater
from kvbench.types import RunShape, Step


def repetitions(repeater: Repeater, tokens: int) -> Iterator[tuple[Step, slice]]:
    """Yield what is said before each pass over a part of a prompt, and the columns it reads.

    Chunks are counted from the end, so that rows of a padded batch are cut where they would be alone.
    """
    number = -(-tokens // repeater.chunk)
    for left in reversed(range(number)):
        stop = tokens - left * repeater.chunk
        start = max(0, stop - repeater.chunk)
        step = Step(phase="repeat", is_last_chunk=left == 0, repeated=slice(start, stop))
        yield step, slice(max(0, start - repeater.lead), stop)


def repeated_positions(step: Step, tokens: int, run: RunShape, device: torch.device) -> Tensor:
    """Return the positions [B, T] of a repetition, which begins behind the prompt of its row; -1 at padding."""
    assert step.repeated is not None
    first = step.repeated.stop - tokens
    column = torch.arange(first, step.repeated.stop, device=device)
    length, pad = (torch.tensor(each, device=device)[:, None] for each in (run.prompt_lengths, run.padding))
    at = length + column - pad.clamp(min=first)
    return at.masked_fill(column < pad, -1).to(torch.int32)
