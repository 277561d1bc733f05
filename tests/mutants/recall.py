"""Recall samples that a check must refuse."""

from __future__ import annotations

from dataclasses import replace

from kvbench.types import Sample


def with_other_answer(sample: Sample) -> Sample:
    """Return a sample whose answer is not the one its context tells."""
    answer = sample.spans[-1]
    ids = [*sample.ids[: answer.start], *(token + 1 for token in sample.ids[answer.start :])]
    return replace(sample, ids=tuple(ids))
