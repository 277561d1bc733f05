"""Scorers over other scorers, and redundancy, that each get one thing wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.protocols import Scorer
from kvbench.cache.views import PromptView
from kvbench.kernels.column_sums import column_sums
from kvbench.strategies.selection import chunks, critical
from kvbench.strategies.selection.chunks import ChunkMean
from kvbench.strategies.selection.critical import CriticalOutput
from kvbench.strategies.selection.redundancy import Redundancy
from kvbench.strategies.selection.scorer import ScorerDefaults
from tests.mutants.core_mutant import Mutant
from tests.mutants.scorers import broken, loops
from tests.support import redundant, wrappers

projected_size, first_stage = critical.projected_size, CriticalOutput._first_stage
chunk_prompt, redundant_prompt = ChunkMean.prompt, Redundancy.prompt
importance, redundancy = Redundancy._importance, Redundancy._redundancy


# -- CriticalKV -----------------------------------------------------------------------------------------------------


def size_of_values(values: Tensor, output: Tensor) -> Tensor:
    """Leave the projection out."""
    return values.abs().sum(dim=-1)


def size_by_squares(values: Tensor, output: Tensor) -> Tensor:
    """Take the L2 norm."""
    share = output.shape[0] // values.shape[1]
    per_head = torch.einsum("bgnd,gsdh->bgsnh", values, output.unflatten(0, (-1, share)))
    size: Tensor = per_head.norm(dim=-1).mean(dim=2)
    return size


def size_of_other_heads(values: Tensor, output: Tensor) -> Tensor:
    """Project with other heads' slices."""
    return projected_size(values, output.roll(1, dims=0))


def no_first_stage(self: CriticalOutput, score: Tensor, view: PromptView) -> Tensor:
    """Leave everything to the sizes."""
    return torch.zeros_like(score, dtype=torch.bool)


def first_stage_of_all(self: CriticalOutput, score: Tensor, view: PromptView) -> Tensor:
    """Spend the budget on the first stage, whatever is set."""
    return first_stage(replace(self, first_share=1.0), score, view)


def unprotected_first_stage(self: CriticalOutput, score: Tensor, view: PromptView) -> Tensor:
    """Do not count the protected entries."""
    return first_stage(replace(self, num_recent=0), score, view)


# -- ChunkKV --------------------------------------------------------------------------------------------------------


def chunk_sums(self: ChunkMean, view: PromptView) -> Tensor:
    """Sum over a chunk, so that a short last one counts for less."""
    score = chunk_prompt(self, view)
    chunk = view.position.clamp(min=0) // self.length
    entries = (chunk[..., None] == chunk[:, :, None]) & (view.position >= 0)[:, :, None]
    return score * entries.sum(dim=-1)


def chunks_of_columns(self: ChunkMean, view: PromptView) -> Tensor:
    """Count chunks from the first column, padding or not."""
    columns = torch.arange(view.position.shape[2]).expand_as(view.position)
    return chunk_prompt(replace(self, base=_Fixed(self.base.prompt(view))), replace(view, position=columns))


def best_of_chunk(self: ChunkMean, view: PromptView) -> Tensor:
    """Judge a chunk by its best entry."""
    score = self.base.prompt(view).sum(dim=1, keepdim=True)
    chunk = (view.position.clamp(min=0) // self.length).long()
    return torch.zeros_like(score).scatter_reduce(2, chunk, score, "amax").gather(2, chunk)


def first_head(self: ChunkMean, view: PromptView) -> Tensor:
    """Ask one head."""
    mine = self.base.prompt(view)[:, :1]
    return chunk_prompt(replace(self, base=_Fixed(mine)), view)


def plain_base(self: ChunkMean, view: PromptView) -> Tensor:
    """Score single entries."""
    return self.base.prompt(view).sum(dim=1, keepdim=True)


class _Fixed(ScorerDefaults):
    def __init__(self, score: Tensor) -> None:
        self.score = score

    def prompt(self, view: PromptView) -> Tensor:
        return self.score


def base_voters(base: Scorer, tokens: int) -> int:
    """Ask a base that adds up for the last piece alone."""
    return base.voters(tokens)


# -- R-KV -----------------------------------------------------------------------------------------------------------


def softmax_over_all(self: Redundancy, view: PromptView, position: Tensor) -> Tensor:
    """Let the window take part in the softmax."""
    total = torch.zeros(view.keys.shape[:3], dtype=torch.float64)
    total += column_sums(
        view.query[:, :, -self.window :],
        view.keys,
        view.scale,
        position=view.position,
        query_position=view.query_position[:, -self.window :],
        window=0,
    )
    return total / self.window


def mean_of_group(self: Redundancy, view: PromptView, position: Tensor) -> Tensor:
    """Average the logits of a group."""
    share = view.query.shape[1] // view.keys.shape[1]
    mean = view.query.unflatten(1, (-1, share)).mean(dim=2)
    return importance(self, replace(view, query=mean), position)


def neighbours_in_slots(self: Redundancy, view: PromptView, position: Tensor) -> Tensor:
    """Take for neighbours what is stored side by side."""
    votes = importance(replace(self, kernel=1), view, position)
    return torch.nn.functional.max_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)


def mean_of_neighbours(self: Redundancy, view: PromptView, position: Tensor) -> Tensor:
    """Smooth by the mean, in order of slots."""
    votes = importance(replace(self, kernel=1), view, position)
    return torch.nn.functional.avg_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)


def nothing_overlooked(self: Redundancy, keys: Tensor, position: Tensor, block: int) -> Tensor:
    """Let the latest of equal keys be as redundant as the first."""
    return redundancy(replace(self, threshold=1.0), keys, position, block)


def order_of_slots(self: Redundancy, keys: Tensor, position: Tensor, block: int) -> Tensor:
    """Take the latest for the one in the last slot."""
    slot = torch.arange(position.shape[-1], dtype=position.dtype).expand_as(position)
    return redundancy(self, keys, torch.where(position >= 0, slot, -1), block)


def padding_repeats(self: Redundancy, keys: Tensor, position: Tensor, block: int) -> Tensor:
    """Take padding for keys."""
    slot = torch.arange(position.shape[-1], dtype=position.dtype).expand_as(position)
    return redundancy(self, keys, slot, block)


def only_at_the_end(self: Redundancy, view: PromptView) -> Tensor:
    """Score by position once the prompt is over."""
    position = view.position.expand(-1, view.keys.shape[1], -1)
    return position.double() if int(position.max()) >= 24 else redundant_prompt(self, view)


def no_number(self: Redundancy, view: PromptView, position: Tensor) -> Tensor:
    """Divide nothing by nothing where nothing is before the window."""
    votes = importance(self, view, position)
    return votes / votes.any(dim=-1, keepdim=True)


critical_loops = loops("criticalkv", wrappers.critical(0.5, 0.25), "scorer.epsilon=0.25")
chunk_loops, peak = loops("chunkkv", wrappers.chunk_means), wrappers.steady_beats_peak
whole = partial(wrappers.chunks_stay_whole, "llama_gqa")
redundant_loops = loops("rkv", redundant.scores())
every_period = partial(redundant.measured_again_every_period, "llama_gqa")

MUTANTS = (
    broken("values are not projected", critical, "projected_size", size_of_values, critical_loops),
    broken("projected values are measured by squares", critical, "projected_size", size_by_squares, critical_loops),
    broken("values are projected by other heads", critical, "projected_size", size_of_other_heads, critical_loops),
    broken(
        "there is no first stage",
        CriticalOutput,
        "_first_stage",
        no_first_stage,
        critical_loops,
        wrappers.first_stage_stays,
        wrappers.everything_first_is_the_base,
    ),
    broken(
        "the first stage takes the whole budget",
        CriticalOutput,
        "_first_stage",
        first_stage_of_all,
        critical_loops,
        wrappers.everything_first_is_the_base,
        wrappers.base_of_equal_values,
    ),
    broken("protected entries do not count", CriticalOutput, "_first_stage", unprotected_first_stage, critical_loops),
    broken("chunks are summed", ChunkMean, "prompt", chunk_sums, chunk_loops, peak),
    broken("chunks begin at the first column", ChunkMean, "prompt", chunks_of_columns, chunk_loops),
    broken("a chunk is judged by its best entry", ChunkMean, "prompt", best_of_chunk, chunk_loops, peak),
    broken(
        "one head speaks for the layer",
        ChunkMean,
        "prompt",
        first_head,
        chunk_loops,
        peak,
        wrappers.chunks_of_one_are_the_base,
    ),
    broken("chunks come apart", ChunkMean, "prompt", plain_base, chunk_loops, whole, peak),
    Mutant(
        name="a base that adds up hears the last piece alone",
        patches=((chunks, "voters_of", base_voters), (critical, "voters_of", base_voters)),
        killed_by=(wrappers.adding_bases_are_asked_once,),
    ),
    broken(
        "the voters are voted for",
        Redundancy,
        "_importance",
        softmax_over_all,
        redundant_loops,
        every_period,
        redundant.importance_alone,
    ),
    broken("logits are averaged over a group", Redundancy, "_importance", mean_of_group, redundant_loops),
    broken("neighbours are those in slots", Redundancy, "_importance", neighbours_in_slots, every_period),
    broken(
        "votes are smoothed by the mean",
        Redundancy,
        "_importance",
        mean_of_neighbours,
        redundant_loops,
        redundant.importance_alone,
    ),
    broken(
        "no key is overlooked",
        Redundancy,
        "_redundancy",
        nothing_overlooked,
        redundant_loops,
        redundant.last_of_equal_keys_is_least_redundant,
    ),
    broken("the latest key is the one in the last slot", Redundancy, "_redundancy", order_of_slots, every_period),
    broken("padding is repeated", Redundancy, "_redundancy", padding_repeats, redundant_loops),
    broken("redundancy is measured once", Redundancy, "prompt", only_at_the_end, every_period),
    broken(
        "nothing before the window is no number",
        Redundancy,
        "_importance",
        no_number,
        redundant.short_prompts_are_scored,
    ),
)
