"""CriticalKV, ChunkKV and FINCH's scores by plain loops; nothing is shared with the scorers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.cache.views import PromptView
from tests.support import toy
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, assert_same_held, uniform
from tests.support.drive import drive, positions
from tests.support.expectation import small_view
from tests.support.models import ids, model
from tests.support.scorers import Loops
from tests.support.states import States
from tests.support.strategies import composed, limit, strategy

WINDOW, KERNEL, CHUNK = 4, 3, 4


def votes(made: States) -> list[list[float]]:
    """SnapKV's votes per KV head, smoothed over the entries before the window."""
    tokens = made.key.shape[1]
    first = max(0, tokens - WINDOW)
    result = []
    for group in range(len(made.key)):
        plain = [made.received(group, at, range(first, tokens)) for at in range(tokens)]
        near = [plain[max(0, at - 1) : min(first, at + 2)] for at in range(first)]
        result.append([sum(numbers) / KERNEL for numbers in near] + plain[first:])
    return result


# -- values under the output projection -----------------------------------------------------------------------------


def critical(share: float, epsilon: float) -> Loops:
    """The best of the base are infinite, the others weighted by the L1 norm of their projected values."""

    def loops(made: States, sinks: int, budget: int) -> list[list[float]]:
        tokens = made.key.shape[1]
        result = []
        for group, base in enumerate(votes(made)):
            size = [
                sum(float((value @ made.output[head]).abs().sum()) for head in made.members(group)) / made.share
                for value in made.value[group]
            ]
            merit = [(at >= tokens - WINDOW, base[at], at) for at in range(tokens)]
            first = {at for _, _, at in sorted(merit, reverse=True)[: int(share * budget)]}
            result.append([math.inf if at in first else (base[at] + epsilon) * size[at] for at in range(tokens)])
        return result

    return loops


def critical_view(*, same_size: bool) -> PromptView:
    """Return a prompt whose values are all alike under the output projection, or are not."""
    view = small_view(rotary=None)
    output = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(2)).double()
    values = torch.ones_like(view.values) if same_size else view.values
    return replace(view, values=values, shape=replace(view.shape, output=output), budget=(12,))


def kept(name: str, view: PromptView, *overrides: str) -> Tensor:
    """Return the entries of a prompt that a method keeps."""
    made = strategy(name, *overrides)
    tokens = view.keys.shape[2]
    index, _ = made.selector.keep(made.scorer.prompt(view), view.position, view.budget, [tokens])
    return index


def base_of_equal_values() -> None:
    """Where all projected values are of one size, the base's own set stays."""
    view = critical_view(same_size=True)
    assert torch.equal(kept("criticalkv", view), kept("snapkv", view))
    assert not torch.equal(kept("criticalkv", critical_view(same_size=False)), kept("snapkv", view))


def everything_first_is_the_base() -> None:
    """A first stage of the whole budget is the base; none at all leaves everything to the sizes."""
    view = critical_view(same_size=False)
    assert torch.equal(kept("criticalkv", view, "scorer.first_share=1.0"), kept("snapkv", view))
    assert strategy("criticalkv", "scorer.first_share=0.0").scorer.prompt(view).isfinite().all()


def first_stage_stays() -> None:
    """The base's best entries stay, whatever the size of their values."""
    view = critical_view(same_size=False)
    best = kept("snapkv", replace(view, budget=(6,)))[0].tolist()
    values = view.values.clone()
    for head, entries in enumerate(best):
        values[:, head, entries] = 0.0
    stays = kept("criticalkv", replace(view, values=values))[0].tolist()
    assert all(set(few) <= set(many) for few, many in zip(best, stays, strict=True))


# -- chunks ---------------------------------------------------------------------------------------------------------


def chunk_means(made: States, sinks: int, budget: int) -> list[list[float]]:
    """The mean over a chunk of the votes, summed over KV heads."""
    summed = [sum(heads) for heads in zip(*votes(made), strict=True)]
    means: list[float] = []
    for first in range(0, len(summed), CHUNK):
        chunk = summed[first : first + CHUNK]
        means += [sum(chunk) / len(chunk)] * len(chunk)
    return [means]


class Given:
    """A base whose scores are given."""

    accumulates, per_head = False, True

    def __init__(self, scores: Sequence[Sequence[float]]) -> None:
        self.scores = torch.tensor(scores, dtype=torch.float64)[None]

    def voters(self, tokens: int) -> int:
        """Return none."""
        return 0

    def prompt(self, view: PromptView) -> Tensor:
        """Return what was given."""
        return self.scores


def given_chunks(scores: Sequence[Sequence[float]], length: int, budget: int) -> list[list[int]]:
    """Return what ChunkKV keeps of given scores."""
    made = strategy("chunkkv", f"scorer.length={length}", "selector.num_recent=0")
    tokens = len(scores[0])
    keys = torch.zeros(1, len(scores), tokens, 8).double()
    score = replace(made.scorer, base=Given(scores)).prompt(toy.view(keys, keys))  # type: ignore[type-var]
    index, _ = made.selector.keep(score, torch.arange(tokens)[None, None], [budget], [tokens])
    chosen: list[list[int]] = index[0].tolist()
    return chosen


def steady_beats_peak() -> None:
    """A chunk whose mean is 0.3 stays before one with a single 0.9 and nothing else."""
    row = [0.9, 0.0, 0.0, 0.0, 0.3, 0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1]
    assert given_chunks([row], 4, 4) == [[4, 5, 6, 7]]
    assert given_chunks([row], 1, 4) == [[0, 5, 6, 7]]
    assert given_chunks([row, [0.0] * 8 + [0.5] * 4], 4, 4) == [[8, 9, 10, 11]]  # heads are summed
    assert given_chunks([[*row, 0.4]], 4, 5) == [[4, 5, 6, 7, 12]]  # the last chunk counts by its own length


def chunks_stay_whole(model_name: str) -> None:
    """The entries that stay are whole chunks, but for the window and one chunk that is cut; all heads keep the same."""
    for budget in (8, BUDGET, 14):
        made = strategy("chunkkv", tokens=budget)
        driven = drive(model(model_name), made, ids(63, 1, PROMPT), uniform(new=0))
        for layer in driven.held[0]:
            assert layer.shape[1] == 1
            (held,) = positions(layer[0])
            assert len(held) == budget
            chosen = [at for at in held if at < PROMPT - WINDOW]
            counts = [sum(at // CHUNK == chunk for at in chosen) for chunk in range((PROMPT - WINDOW) // CHUNK)]
            assert sorted(counts, reverse=True)[: (budget - WINDOW) // CHUNK] == [CHUNK] * ((budget - WINDOW) // CHUNK)
            assert sum(count not in (0, CHUNK) for count in counts) == ((budget - WINDOW) % CHUNK > 0)


def chunks_of_one_are_the_base() -> None:
    """Chunks of one entry are SnapKV with one set for all heads, from the sum of their votes."""
    view = small_view(rotary=None)
    got = strategy("chunkkv", "scorer.length=1").scorer.prompt(view)
    assert_close(got, strategy("snapkv").scorer.prompt(view).sum(dim=1, keepdim=True))


def adding_bases_are_asked_once() -> None:
    """A base that adds up over chunks of a prompt gives the same in pieces, behind both kinds of scorer."""
    for name in ("chunkkv", "criticalkv"):
        base = "strategy/scorer@strategy.scorer.base=attention_mass"
        made = composed(name, base, "selector.num_recent=2", *limit("tokens", BUDGET))
        tokens = ids(64, 2, PROMPT + NEW)
        whole, pieces = (
            drive(model("llama_gqa"), made, tokens, uniform(rows=2), chunks=chunks) for chunks in ((), (7, 1, 13, 3))
        )
        assert_close(pieces.logits, whole.logits)
        assert_same_held(pieces.held, whole.held)


# -- a question -----------------------------------------------------------------------------------------------------


def question(made: States, sinks: int, budget: int) -> list[list[float]]:
    """The question's attention, each query times the keys it sees, averaged."""
    tokens = made.key.shape[1]
    asking = range(max(0, tokens - WINDOW), tokens)
    return [
        [sum(made.received(g, at, range(q, q + 1)) * (q + 1) for q in asking) / len(asking) for at in range(tokens)]
        for g in range(len(made.key))
    ]


def worked_question() -> None:
    """The last two rows of the worked example, five and six times."""
    score = strategy("finch", "scorer.window=2").scorer.prompt(toy.view(*toy.prompt()))
    rows = [[5 * weight for weight in toy.ROWS[4]] + [0.0], [6 * weight for weight in toy.ROWS[5]]]
    assert_close(score[0, 0], torch.tensor(rows, dtype=torch.float64).mean(dim=0))


def output_is_unknown(name: str = "criticalkv") -> None:
    """Score a prompt of a model whose output projection nobody knows."""
    view = critical_view(same_size=True)
    strategy(name).scorer.prompt(replace(view, shape=replace(view.shape, output=None)))
