"""Counts, noise and lots that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.selection import lots as chance
from kvbench.strategies.selection import proxy
from kvbench.strategies.selection.noisy import NoisyMass
from kvbench.strategies.selection.persistence import OldestFirst, Persistence
from kvbench.strategies.selection.proxy import ProxyAttention, TopAndSampled
from kvbench.strategies.selection.selector import Protected
from tests.mutants.core_mutant import Mutant
from tests.support import dynamic

note = Persistence._note
noisy_prompt, noisy, tau = NoisyMass.prompt, NoisyMass._noisy, NoisyMass._tau
lots, exponential = chance.lots, chance.exponential
sampled = TopAndSampled.sampled


def slow(name: str, model: str = "llama_gqa") -> partial[None]:
    """Return the comparison of a method with plain loops."""
    return partial(dynamic.equals_the_slow_route, name, model)


# -- Scissorhands -----------------------------------------------------------------------------------------------------


def forgetting_the_prompt(self: Persistence, view: PromptView) -> None:
    """Begin with empty rings, so that what the prompt lost never goes away."""
    return


def never_forgetting(self: Persistence, memory: Tensor, below: Tensor, step: int) -> Tensor:
    """Count a lost step for ever."""
    return torch.zeros_like(note(self, memory, below, step))


def one_step_longer(self: Persistence, memory: Tensor, below: Tensor, step: int) -> Tensor:
    """Use a ring of one bit more."""
    return note(replace(self, history=self.history + 1), memory, below, step)


def summing_weights(self: Persistence, view: PromptView) -> Tensor:
    """Add the weights themselves up."""
    return view.attention_received(last=self.history)


def equal_share_of_all(self: Persistence, view: PromptView) -> Iterator[Tensor]:
    """Take the equal share over the whole prompt, whatever a query sees of it."""
    for weights, at in view.attention(last=self.history):
        sees = view.position[:, :, None] <= at[:, None, :, None]
        yield (weights.mean(dim=2) * view.keys.shape[2] < 1) & sees


def equal_share_of_columns(self: Persistence, view: PromptView) -> Iterator[Tensor]:
    """Count padding among what a query sees."""
    padding = view.keys.shape[2] - 1 - view.query_position.amax(dim=1, keepdim=True)
    for weights, at in view.attention(last=self.history):
        sees = (view.position[:, :, None] <= at[:, None, :, None]) & (view.position >= 0)[:, :, None]
        yield (weights.mean(dim=2) * (at + 1 + padding)[:, None, :, None] < 1) & sees


def three_equal_shares(self: Persistence, seen: Observation) -> None:
    """Ask for three times as much."""
    below = seen.weights.mean(dim=2) * (seen.position >= 0).sum(dim=-1, keepdim=True) < 3
    seen.score.add_(self._note(seen.memory, below, seen.step)).sub_(below.to(seen.score.dtype))  # type: ignore[arg-type]


def youngest_first(
    self: OldestFirst,
    score: Tensor,
    position: Tensor,
    newest: Tensor | int,
    recent: Tensor | int,
    out: Tensor,
    *,
    has_empty: bool,
) -> None:
    """Let the youngest of equal entries go."""
    ranked = score.double() * 2.0**31 - position
    Protected.victims(self, ranked, position, newest, recent, out, has_empty=has_empty)


# -- Keyformer --------------------------------------------------------------------------------------------------------


def never_plain(self: NoisyMass, tau: float) -> bool:
    """Normalise weights that are normalised."""
    return False


def noise_of_the_pass(self: NoisyMass, view: PromptView) -> Tensor:
    """Draw anew for every pass."""
    offset = view.query_position.clamp(min=0).amin(dim=1)
    moved = replace(self, seed=self.seed + int(offset.amax()))
    return noisy_prompt(moved, view)


def not_normalised(
    self: NoisyMass, weights: Tensor, layer: int, heads: Tensor, query: Tensor, key: Tensor, step: int
) -> Tensor:
    """Leave out the sum of the softmax."""
    lot = chance.pair_lots(self.seed, layer, heads, query, key)
    return (weights * exponential(lot, weights.dtype).pow(-self.noise)).pow(1 / self._tau(step))


def colder(self: NoisyMass, step: int) -> Tensor | float:
    """Multiply where one divides."""
    return 1 / tau(self, step)


def one_step_late(self: NoisyMass, step: int) -> Tensor | float:
    """Begin to warm up after the first decode step."""
    return tau(self, max(0, step - 1))


def lots_without_position(seed: int, layer: int, head: Tensor, position: Tensor) -> Tensor:
    """Draw one lot for all positions."""
    return lots(seed, layer, head, torch.zeros_like(position))


def lots_without_head(seed: int, layer: int, head: Tensor, position: Tensor) -> Tensor:
    """Draw one lot for all heads."""
    return lots(seed, layer, torch.zeros_like(head), position)


def noise_of_columns(self: NoisyMass, view: PromptView) -> Tensor:
    """Take padding for text."""
    columns = torch.arange(view.keys.shape[2], dtype=torch.int32).expand(len(view.keys), -1)
    at = columns[:, -view.query.shape[2] :]
    return noisy_prompt(self, replace(view, position=columns[:, None], query_position=at))


# -- NACL -------------------------------------------------------------------------------------------------------------


def voters_of_the_longest(self: ProxyAttention, view: PromptView) -> Tensor:
    """Let as many queries vote in every row."""
    return view.attention_received()


def one_votes(self: ProxyAttention, view: PromptView) -> Tensor:
    """Let the last query vote alone."""
    return view.attention_received(last=1)


def no_chance(lot: Tensor, dtype: torch.dtype) -> Tensor:
    """Draw nothing."""
    return torch.ones(lot.shape, dtype=dtype)


def wilder(lot: Tensor, dtype: torch.dtype) -> Tensor:
    """Draw with noise twice as strong."""
    return exponential(lot, dtype).square()


def same_in_all_layers(self: TopAndSampled, layer: int) -> TopAndSampled:
    """Draw the same lots in every layer."""
    return self


def one_too_many(self: TopAndSampled, budget: int) -> int:
    """Draw one entry more."""
    return sampled(self, budget) + 1


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="rings begin empty",
        patches=((Persistence, "memory", forgetting_the_prompt),),
        killed_by=(slow("scissorhands"), partial(dynamic.counts_have_the_bits_of_their_ring, "llama_gqa", 20)),
    ),
    Mutant(
        name="lost steps count for ever",
        patches=((Persistence, "_note", never_forgetting),),
        killed_by=(slow("scissorhands", "gpt2"), dynamic.the_ring_forgets),
    ),
    Mutant(
        name="the ring is one step longer",
        patches=((Persistence, "_note", one_step_longer),),
        killed_by=(dynamic.the_ring_forgets, slow("scissorhands")),
    ),
    Mutant(
        name="weights are summed",
        patches=((Persistence, "prompt", summing_weights),),
        killed_by=(dynamic.one_spike_counts_once, dynamic.lost_steps_choose_from_the_prompt),
    ),
    Mutant(
        name="the equal share is that of the whole prompt",
        patches=((Persistence, "_below", equal_share_of_all),),
        killed_by=(dynamic.lost_steps_choose_from_the_prompt, slow("scissorhands", "llama_mha")),
    ),
    Mutant(
        name="padding takes a share",
        patches=((Persistence, "_below", equal_share_of_columns),),
        killed_by=(partial(dynamic.rows_equal_the_slow_route, "scissorhands", "llama_gqa"),),
    ),
    Mutant(
        name="three equal shares are asked for",
        patches=((Persistence, "observe", three_equal_shares),),
        killed_by=(dynamic.above_average_never_leaves, slow("scissorhands")),
    ),
    Mutant(
        name="the youngest of equal entries leave",
        patches=((OldestFirst, "victims", youngest_first),),
        killed_by=(dynamic.equal_counts_let_the_oldest_go, slow("scissorhands")),
    ),
    Mutant(
        name="what is plain is normalised again",
        patches=((NoisyMass, "_is_plain", never_plain),),
        killed_by=(partial(dynamic.without_noise_it_is_h2o, "llama_gqa"),),
    ),
    Mutant(
        name="noise of the pass",
        patches=((NoisyMass, "prompt", noise_of_the_pass),),
        killed_by=(
            partial(dynamic.noise_ignores_blocks, "llama_gqa"),
            partial(dynamic.rows_equal_the_slow_route, "keyformer", "llama_gqa", (7, 1, 13, 3)),
        ),
    ),
    Mutant(
        name="odds are not normalised",
        patches=((NoisyMass, "_noisy", not_normalised),),
        killed_by=(partial(dynamic.noisy_sums_are_conserved, "llama_gqa"), slow("keyformer")),
    ),
    Mutant(
        name="colder and colder",
        patches=((NoisyMass, "_tau", colder),),
        killed_by=(dynamic.temperature_flattens, slow("keyformer")),
    ),
    Mutant(
        name="warmer one step late",
        patches=((NoisyMass, "_tau", one_step_late),),
        killed_by=(dynamic.temperature_flattens, slow("keyformer")),
    ),
    Mutant(
        name="one lot for all positions",
        patches=((chance, "lots", lots_without_position), (proxy, "lots", lots_without_position)),
        killed_by=(dynamic.noise_is_gumbel, slow("keyformer"), slow("nacl"), dynamic.drawn_with_the_softmax),
    ),
    Mutant(
        name="one lot for all heads",
        patches=((chance, "lots", lots_without_head), (proxy, "lots", lots_without_head)),
        killed_by=(dynamic.noise_is_gumbel, slow("keyformer"), slow("nacl"), dynamic.lots_differ),
    ),
    Mutant(
        name="noise is infinite at times",
        patches=((chance, "_SPARE_BITS", 7), (chance, "_LEVELS", 2**24)),
        killed_by=(dynamic.noise_is_gumbel,),
    ),
    Mutant(
        name="half of the lots are missing",
        patches=((chance, "_SPARE_BITS", 9),),
        killed_by=(dynamic.noise_is_gumbel, dynamic.drawn_with_the_softmax),
    ),
    Mutant(
        name="padding is noisy text",
        patches=((NoisyMass, "prompt", noise_of_columns),),
        killed_by=(partial(dynamic.rows_equal_the_slow_route, "keyformer", "llama_gqa"),),
    ),
    Mutant(
        name="the longest row says how many vote",
        patches=((ProxyAttention, "prompt", voters_of_the_longest),),
        killed_by=(partial(dynamic.rows_equal_the_slow_route, "nacl", "llama_gqa"),),
    ),
    Mutant(
        name="one proxy votes",
        patches=((ProxyAttention, "prompt", one_votes),),
        killed_by=(slow("nacl"), partial(dynamic.without_lots_it_is_snapkv, "llama_gqa")),
    ),
    Mutant(
        name="no chance",
        patches=((proxy, "exponential", no_chance),),
        killed_by=(slow("nacl"), dynamic.drawn_with_the_softmax, dynamic.lots_differ),
    ),
    Mutant(
        name="chance is wilder",
        patches=((proxy, "exponential", wilder),),
        killed_by=(dynamic.drawn_with_the_softmax,),
    ),
    Mutant(
        name="layers draw the same lots",
        patches=((TopAndSampled, "of_layer", same_in_all_layers),),
        killed_by=(partial(dynamic.layers_draw_their_own, "llama_gqa"), dynamic.lots_differ, slow("nacl")),
    ),
    Mutant(
        name="one entry more is drawn",
        patches=((TopAndSampled, "sampled", one_too_many),),
        killed_by=(slow("nacl"), partial(dynamic.without_lots_it_is_snapkv, "llama_gqa")),
    ),
)
