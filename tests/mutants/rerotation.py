"""A question's scores and rotated ranks that each get one thing wrong."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kvbench.cache import store
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.rotary import turn
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.question import QuestionAttention
from tests.mutants.scorers import broken, loops
from tests.support import rerotation, wrappers

question_prompt = QuestionAttention.prompt
in_rank, position_ids = store.Store._in_rank, KVCache.position_ids


def queries_count_alike(self: QuestionAttention, view: PromptView) -> Tensor:
    """Do not weight queries by what they see."""
    return view.attention_received(self.window) / self.window


def keys_before(self: QuestionAttention, view: PromptView) -> Tensor:
    """Count the keys before a query and not its own."""
    received = view.attention_received(self.window)
    voters = (view.query_position[:, -self.window :] >= 0).sum(dim=-1)[:, None, None]
    return question_prompt(self, view) - received / voters


def ranks_from_one(self: store.Store, keys: Tensor, position: Tensor) -> Tensor:
    """Begin with position 1."""
    return in_rank(self, keys, position - (position >= 0).to(position.dtype))


def turned_the_wrong_way(self: store.Store, keys: Tensor, position: Tensor) -> Tensor:
    """Turn keys on where they should turn back."""
    rank = torch.arange(position.shape[2])
    return in_rank(self, keys, torch.where(position >= 0, 2 * rank - position, position))


def turned_even_in_place(self: store.Store, keys: Tensor, position: Tensor) -> Tensor:
    """Rotate back to nothing and forth again, which rounds."""
    assert self.plan.shape.rotary is not None
    raw = turn(keys, -position.clamp(min=0), self.plan.shape.rotary)
    rank = torch.arange(position.shape[2]).expand_as(position)
    return turn(raw, rank, self.plan.shape.rotary)


def true_positions(self: KVCache, tokens: int) -> Tensor:
    """Read new tokens where they stand in the text."""
    held, self._dropped = self._dropped, None
    at = position_ids(self, tokens)
    self._dropped = held
    return at


def one_too_early(self: KVCache, tokens: int) -> Tensor:
    """Read new tokens at the position of the last entry kept."""
    at = position_ids(self, tokens)
    return at if self.get_seq_length() < self.run.prompt_tokens else at - 1


question_loops, worked_question = loops("finch", wrappers.question), wrappers.worked_question
ranks = partial(rerotation.keys_are_at_their_ranks, "llama_gqa")
goes_on = partial(rerotation.decoding_goes_on_at_the_rank, "llama_gqa")
unchanged = partial(rerotation.rerotating_everything_changes_nothing, "llama_gqa")
counted = rerotation.positions_count_what_is_held

MUTANTS = (
    broken(
        "a question's queries count alike",
        QuestionAttention,
        "prompt",
        queries_count_alike,
        question_loops,
        worked_question,
    ),
    broken("a query's own key is left out", QuestionAttention, "prompt", keys_before, question_loops, worked_question),
    broken("ranks begin with 1", store.Store, "_in_rank", ranks_from_one, ranks, goes_on),
    broken("keys are turned the wrong way", store.Store, "_in_rank", turned_the_wrong_way, ranks, goes_on),
    broken("keys in place are turned too", store.Store, "_in_rank", turned_even_in_place, unchanged),
    broken("new tokens stand where the text does", KVCache, "position_ids", true_positions, goes_on, counted),
    broken("new tokens begin one too early", KVCache, "position_ids", one_too_early, goes_on, counted),
)
