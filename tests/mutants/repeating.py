"""KVzip with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import kv_cache, layer, repeat
from kvbench.cache.layer import CacheLayer
from kvbench.cache.views import PromptView
from kvbench.strategies.budget import adaptive
from kvbench.strategies.budget.adaptive import Adaptive
from kvbench.strategies.selection.repetition import Repetition
from kvbench.types import RunShape, Step
from tests.mutants.core_mutant import Mutant
from tests.support import repeating

repeated, share_all, positions, read_again = (
    Repetition.repeated,
    Adaptive.share,
    repeat.repeated_positions,
    CacheLayer._repeat,
)


def summed(self: Repetition, view: PromptView, columns: slice) -> Tensor:
    """Sum the weights of all queries."""
    width = columns.stop - columns.start
    own = view.query.shape[2]
    total = torch.zeros(())
    for query in range(own - width, own):
        at = torch.full_like(view.query_position, -1)
        at[:, query] = view.query_position[:, query]
        total = total + repeated(self, replace(view, query_position=at), columns)
    return total


def without_repetition(self: Repetition, view: PromptView, columns: slice) -> Tensor:
    """Leave the repetition itself out of the weights."""
    own = view.query.shape[2]
    position = view.position.clone()
    position[:, :, -own:] = -1
    return repeated(self, replace(view, position=position), columns)


def without_sinks(self: Repetition, view: PromptView, columns: slice) -> Tensor:
    """Leave the sinks out of the weights."""
    return repeated(replace(self, num_sink=0), view, columns)


def whole_prompt(self: Repetition, view: PromptView, columns: slice) -> Tensor:
    """Weigh among the whole prompt."""
    return repeated(replace(self, num_sink=1 << 20), view, columns)


def lead_votes(self: Repetition, view: PromptView, columns: slice) -> Tensor:
    """Let the queries before the chunk vote, too."""
    first = max(0, columns.stop - view.query.shape[2])
    wider = repeated(self, view, slice(first, columns.stop))
    return wider[:, :, columns.start - first :]


def from_the_start(step: Step, tokens: int, run: RunShape, device: torch.device) -> Tensor:
    """Read the repetition where it was read first."""
    found = positions(step, tokens, run, device)
    return torch.where(found < 0, found, found - torch.tensor(run.prompt_lengths, dtype=found.dtype)[:, None])


def padding_read(step: Step, tokens: int, run: RunShape, device: torch.device) -> Tensor:
    """Count padding as tokens."""
    return positions(step, tokens, replace(run, prompt_lengths=(run.prompt_tokens,) * run.batch_size), device)


def apart(self: Adaptive, layers: Any) -> Any:
    """Let heads compete within their layers."""
    return [share_all(self, [one])[0] for one in layers]


def seen_twice(self: CacheLayer, *given: Any) -> Tensor:
    """Count the repetition as tokens seen."""
    self.seen += 1
    return read_again(self, *given)


def one_too_many(priority: Tensor, total: int) -> list[int]:
    """Give the first head one more."""
    first, *others = adaptive_winners(priority, total)
    return [first + 1, *others]


adaptive_winners = adaptive._winners
_SCORES = repeating.scores_equal_attention_to_the_repetition


def _scored_wrong(name: str, broken: object) -> Mutant:
    return Mutant(name=name, patches=((Repetition, "repeated", broken),), killed_by=(partial(_SCORES, "gpt2"),))


MUTANTS = (
    _scored_wrong("weights are summed", summed),
    _scored_wrong("the repetition takes no weight", without_repetition),
    _scored_wrong("sinks take no weight", without_sinks),
    _scored_wrong("everything takes weight", whole_prompt),
    _scored_wrong("the lead votes", lead_votes),
    Mutant(
        name="sums are no weights",
        patches=((Repetition, "repeated", summed),),
        killed_by=(repeating.scores_are_weights,),
    ),
    Mutant(
        name="the repetition is read where the prompt was",
        patches=((kv_cache, "repeated_positions", from_the_start), (layer, "repeated_positions", from_the_start)),
        killed_by=(partial(_SCORES, "llama_gqa"),),
    ),
    Mutant(
        name="padding is read again",
        patches=((kv_cache, "repeated_positions", padding_read), (layer, "repeated_positions", padding_read)),
        killed_by=(partial(_SCORES, "gpt2"),),
    ),
    Mutant(
        name="layers share apart",
        patches=((Adaptive, "share", apart),),
        killed_by=(partial(repeating.one_pool_keeps_the_best_of_all_layers, "llama_gqa"),),
    ),
    Mutant(
        name="the pool is not exact",
        patches=((adaptive, "_winners", one_too_many),),
        killed_by=(
            partial(repeating.one_pool_keeps_the_best_of_all_layers, "llama_gqa"),
            repeating.a_full_safeguard_keeps_heads_alike,
        ),
    ),
    Mutant(
        name="the repetition counts as seen",
        patches=((CacheLayer, "_repeat", seen_twice),),
        killed_by=(partial(repeating.reading_again_changes_nothing_else, "llama_gqa"),),
    ),
)
