"""Scorers that each get one thing wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import views
from kvbench.cache.views import Observation, PromptView
from kvbench.kernels import column_sums as kernel
from kvbench.kernels.attend import visible_to
from kvbench.strategies.selection.attention import AttentionMass, LastQuery, WindowAttention
from kvbench.strategies.selection.key_norm import KeyNorm
from kvbench.strategies.selection.random import RandomScore
from tests.mutants.core_mutant import Mutant
from tests.support import checks, parts, scores, toy

column_sums = kernel.column_sums
lot = RandomScore._lot


def under_mask(name: str, model: str = "llama_gqa") -> partial[None]:
    """Return the mask oracle of a method."""
    return partial(checks.equals_dense_attention_under_its_mask, name, model)


def mean_over_queries(self: AttentionMass, view: PromptView) -> Tensor:
    """Divide by the queries that can see an entry."""
    received = view.attention_received()
    return received / torch.arange(received.shape[-1], 0, -1)


def replacing(self: AttentionMass, seen: Observation) -> None:
    """Forget what was received before."""
    seen.score.copy_(seen.weights.mean(dim=2))


def first_head_only(self: AttentionMass, seen: Observation) -> None:
    """Look at one query head of each group."""
    seen.score.add_(seen.weights[:, :, 0])


def sums_of_first_heads(query: Tensor, keys: Tensor, scale: float, **more: Any) -> Tensor:
    """Look at one query head of each group."""
    return column_sums(query[:, :: query.shape[1] // keys.shape[1]], keys, scale, **more)


def sums_with_padding(query: Tensor, keys: Tensor, scale: float, **more: Any) -> Tensor:
    """Take padding for text."""
    columns = torch.arange(keys.shape[2], dtype=torch.int32).expand(keys.shape[0], -1)
    more |= {"position": columns[:, None], "query_position": columns[:, -query.shape[2] :]}
    return column_sums(query, keys, scale, **more)


def sums_without_causality(query: Tensor, keys: Tensor, scale: float, **more: Any) -> Tensor:
    """Let every query of a pass see what the last one sees."""
    at = more.pop("query_position")
    return column_sums(query, keys, scale, query_position=at.amax(dim=1, keepdim=True).expand_as(at), **more)


def sums_in_the_models_dtype(query: Tensor, keys: Tensor, scale: float, **more: Any) -> Tensor:
    """Add one query after the other in the dtype of the model."""
    at, total = more.pop("query_position"), torch.zeros((), dtype=query.dtype)
    for row in range(query.shape[2]):
        part = column_sums(query[:, :, row : row + 1], keys, scale, query_position=at[:, row : row + 1], **more)
        total = total + part.to(query.dtype)
    return total.float()


def sums_in_one_block(query: Tensor, keys: Tensor, scale: float, **more: Any) -> Tensor:
    """Make the whole matrix."""
    seen = visible_to(more["position"], more["query_position"], more["window"])
    logits = (query @ keys.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
    return logits.softmax(dim=-1).sum(dim=2)


def one_group_only(self: LastQuery, view: PromptView) -> Tensor:
    """Ask the heads of the first group alone."""
    return view.attention_received(last=1)[:, :1]


def all_queries(self: LastQuery, view: PromptView) -> Tensor:
    """Ask every query of the prompt."""
    return view.attention_received().mean(dim=1, keepdim=True)


def adding(self: LastQuery, seen: Observation) -> None:
    """Remember earlier queries."""
    seen.score.add_(seen.weights.flatten(1, 2).mean(dim=1, keepdim=True))


def pooled_over_the_window(self: WindowAttention, view: PromptView) -> Tensor:
    """Smooth the voters' own entries in as well."""
    received = view.attention_received(last=self.window)
    return torch.nn.functional.avg_pool1d(received, self.kernel, stride=1, padding=self.kernel // 2)


def mean_without_padding(self: WindowAttention, view: PromptView) -> Tensor:
    """Leave the zeros beyond the ends out of the mean."""
    received = view.attention_received(last=self.window)
    prefix = received[..., : -self.window]
    pooled = torch.nn.functional.avg_pool1d(
        prefix, self.kernel, stride=1, padding=self.kernel // 2, count_include_pad=False
    )
    return torch.cat([pooled, received[..., -self.window :]], dim=-1)


def one_voter_too_few(self: WindowAttention, view: PromptView) -> Tensor:
    """Leave out the first query of the window, without smoothing."""
    return view.attention_received(last=self.window - 1)


def large_norms(self: KeyNorm, view: PromptView) -> Tensor:
    """Keep what looks important."""
    norms: Tensor = view.keys.norm(dim=-1)
    return norms


def distance_to_a_norm(self: KeyNorm, view: PromptView) -> Tensor:
    """Keep norms near one of the worked example's, whatever the scale of the keys."""
    norms: Tensor = view.keys.norm(dim=-1)
    return -(norms - 2.4).abs()


def lot_of_the_column(self: RandomScore, position: Tensor, key: Tensor, layer: int) -> Tensor:
    """Draw for columns instead of positions."""
    columns = torch.arange(position.shape[-1], dtype=torch.int32).expand_as(position)
    return lot(self, columns if position.shape[-1] > 1 else position, key, layer)


def lot_of_the_layer(self: RandomScore, position: Tensor, key: Tensor, layer: int) -> Tensor:
    """Draw once for all heads."""
    return lot(self, position, key[:, :1], layer).expand(-1, key.shape[1], -1)


def unfair_lot(self: RandomScore, position: Tensor, key: Tensor, layer: int) -> Tensor:
    """Draw small numbers more often."""
    return lot(self, position, key, layer) ** 1.1


class Leak:
    """Adds what it saw of earlier sequences."""

    total = 0.0

    def prompt(self, view: PromptView) -> Tensor:
        """Return scores that depend on how many prompts were read before, in any sequence."""
        Leak.total += 1.0
        received = view.attention_received()
        return received * torch.sin(torch.arange(received.shape[-1]) * Leak.total)


def _everywhere(broken: object) -> tuple[tuple[object, str, object], ...]:
    return ((views, "column_sums", broken), (kernel, "column_sums", broken))


MUTANTS = (
    Mutant(
        name="attention mass is averaged over queries",
        patches=((AttentionMass, "prompt", mean_over_queries),),
        killed_by=(
            toy.prompt_sets,
            toy.mass_is_the_column_sum,
            under_mask("h2o"),
            partial(scores.scores_equal_eager_attention, "h2o", "llama_gqa"),
            partial(scores.mass_is_conserved, "llama_gqa"),
        ),
    ),
    Mutant(
        name="attention mass is memoryless",
        patches=((AttentionMass, "observe", replacing),),
        killed_by=(
            toy.mass_accumulates_while_decoding,
            under_mask("h2o", "llama_mha"),
            partial(scores.mass_is_conserved, "gpt2"),
        ),
    ),
    Mutant(
        name="attention mass takes one head for its group",
        patches=((AttentionMass, "observe", first_head_only),),
        killed_by=(under_mask("h2o"), partial(scores.grouped_heads_equal_repeated_heads, "h2o")),
    ),
    Mutant(
        name="prompt scores take one head for its group",
        patches=_everywhere(sums_of_first_heads),
        killed_by=(
            under_mask("snapkv"),
            partial(scores.grouped_heads_equal_repeated_heads, "snapkv"),
            partial(scores.scores_equal_eager_attention, "snapkv", "llama_gqa"),
            partial(parts.column_sums_equal_dense, 0),
        ),
    ),
    Mutant(
        name="padding is scored as text",
        patches=_everywhere(sums_with_padding),
        killed_by=(
            partial(checks.padded_rows_equal_rows_alone, "h2o", "llama_gqa", by_ratio=False),
            partial(parts.column_sums_equal_dense, 0),
        ),
    ),
    Mutant(
        name="the voting window has no causal mask",
        patches=_everywhere(sums_without_causality),
        killed_by=(
            toy.window_votes_are_pooled,
            partial(scores.scores_equal_eager_attention, "snapkv", "gpt2"),
        ),
    ),
    Mutant(
        name="scores are summed in bfloat16",
        patches=_everywhere(sums_in_the_models_dtype),
        killed_by=(parts.sums_are_not_rounded_to_the_model,),
    ),
    Mutant(
        name="scores come from a square matrix",
        patches=_everywhere(sums_in_one_block),
        killed_by=(parts.no_square_matrix,),
    ),
    Mutant(
        name="the last query is asked of one group",
        patches=((LastQuery, "prompt", one_group_only),),
        killed_by=(under_mask("tova"), partial(scores.scores_equal_eager_attention, "tova", "llama_gqa")),
    ),
    Mutant(
        name="the last query is every query",
        patches=((LastQuery, "prompt", all_queries),),
        killed_by=(toy.prompt_sets, toy.last_query_forgets_earlier_rows, under_mask("tova", "gpt2")),
    ),
    Mutant(
        name="the last query remembers",
        patches=((LastQuery, "observe", adding),),
        killed_by=(toy.last_query_replaces_while_decoding, under_mask("tova")),
    ),
    Mutant(
        name="pooling reaches into the window",
        patches=((WindowAttention, "prompt", pooled_over_the_window),),
        killed_by=(toy.window_votes_are_pooled, under_mask("snapkv")),
    ),
    Mutant(
        name="pooling does not count the ends",
        patches=((WindowAttention, "prompt", mean_without_padding),),
        killed_by=(toy.window_votes_are_pooled,),
    ),
    Mutant(
        name="a voter is missing",
        patches=((WindowAttention, "prompt", one_voter_too_few),),
        killed_by=(under_mask("snapkv"), partial(scores.scores_equal_eager_attention, "snapkv", "llama_mha")),
    ),
    Mutant(
        name="large keys stay",
        patches=((KeyNorm, "prompt", large_norms),),
        killed_by=(toy.small_norms_stay, under_mask("knorm")),
    ),
    Mutant(
        name="the scale of keys matters",
        patches=((KeyNorm, "prompt", distance_to_a_norm),),
        killed_by=(toy.small_norms_stay,),
    ),
    Mutant(
        name="lots are drawn for columns",
        patches=((RandomScore, "_lot", lot_of_the_column),),
        killed_by=(partial(checks.padded_rows_equal_rows_alone, "random_eviction", "llama_gqa", by_ratio=False),),
    ),
    Mutant(
        name="all heads draw the same lot",
        patches=((RandomScore, "_lot", lot_of_the_layer),),
        killed_by=(parts.lots_are_fair, under_mask("random_eviction")),
    ),
    Mutant(
        name="small lots are drawn more often",
        patches=((RandomScore, "_lot", unfair_lot),),
        killed_by=(parts.lots_are_fair,),
    ),
    Mutant(
        name="a sequence leaves something behind",
        patches=((AttentionMass, "prompt", Leak.prompt),),
        killed_by=(partial(checks.second_sequence_is_fresh, "h2o", "llama_gqa"),),
    ),
)
