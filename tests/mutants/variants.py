"""Engines with a cache of their own that skip work, stop early, or are timed and compared by their first row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import configuration_utils
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from kvbench.engines import black_box
from tests.mutants.core_mutant import Mutant
from tests.support import variants
from tests.support.variants import (
    every_round_reads_all_rows_at_once_from_the_start,
    no_token_ends_a_row_or_is_kept_from_coming,
    the_tokens_are_those_of_generate,
)

generate: Callable[..., Any] = GenerationMixin.generate


class Sharing(ContinuousBatchingConfig):
    """Pages of a prompt that was read before are used again."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.allow_block_sharing = True


class Patient(ContinuousBatchingConfig):
    """Rows wait for each other."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.max_requests_per_batch = 1


def with_a_least_length(self: Any, *given: Any, **keywords: Any) -> Any:
    """Keep the token that ends a row from coming."""
    keywords.pop("eos_token_id")
    return generate(self, *given, min_new_tokens=keywords["max_new_tokens"], **keywords)


def second_best(self: Any, *given: Any, **keywords: Any) -> Any:
    """Sample instead of taking the most likely token."""
    torch.manual_seed(0)
    return generate(self, *given, **{**keywords, "do_sample": True, "temperature": 5.0})


def of_the_first_row(started_ns: int, arrivals_ns: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Look at the first row alone."""
    return tuple(after - before for before, after in pairwise([started_ns, *arrivals_ns[0]]))


def in_the_first_row(tokens: Tensor, ours: Tensor) -> tuple[int, int | None]:
    """Look at the first row that differs alone."""
    rows = (tokens != ours).any(dim=1)
    row = int(rows.int().argmax())
    return (int((tokens[row] != ours[row]).int().argmax()), row) if rows.any() else (ours.shape[1], None)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="pages are shared",
        patches=((configuration_utils, "ContinuousBatchingConfig", Sharing),),
        killed_by=(partial(every_round_reads_all_rows_at_once_from_the_start, "continuous"),),
    ),
    Mutant(
        name="rows wait",
        patches=((configuration_utils, "ContinuousBatchingConfig", Patient),),
        killed_by=(partial(every_round_reads_all_rows_at_once_from_the_start, "continuous"),),
    ),
    Mutant(
        name="a row may not end",
        patches=((GenerationMixin, "generate", with_a_least_length),),
        killed_by=(partial(no_token_ends_a_row_or_is_kept_from_coming, "dynamic"),),
    ),
    Mutant(
        name="another token",
        patches=((GenerationMixin, "generate", second_best),),
        killed_by=(partial(the_tokens_are_those_of_generate, "static", "llama_gqa"),),
    ),
    Mutant(
        name="steps of the first row",
        patches=((black_box, "steps_of", of_the_first_row),),
        killed_by=(variants.a_step_ends_with_its_last_row,),
    ),
    Mutant(
        name="the first row that differs",
        patches=((variants, "equal_tokens", in_the_first_row),),
        killed_by=(variants.tokens_are_equal_up_to_the_first_that_differs_in_any_row,),
    ),
)
