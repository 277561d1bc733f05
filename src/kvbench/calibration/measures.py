"""Scores of a model's KV heads, by three measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.cache.rotary import turn
from kvbench.calibration.reading import Report, about, how_much
from kvbench.calibration.samples import Marked, needles, repetitions
from kvbench.calibration.watching import forward
from kvbench.kernels.column_sums import attention_blocks
from kvbench.models.load import Loaded
from kvbench.strategies.budget.scores import HeadScores
from kvbench.types import LayerShape
from kvbench.workloads.source import TokenSource

DIGITS = 6  # kept of a score
GATE_POSITIONS = 500  # at which a head's mean query and key are compared

Scores = dict[str, list[Tensor]]  # by name, per layer [G, H / G], summed over samples


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How heads are scored.

    Args:
        about: what the scores say.
        samples: how many, unless the user says otherwise.
        tokens: of each, unless the user says otherwise or the model reads fewer.
        least: tokens a sample needs.
        group: how the query heads of a KV head decide.
        sums: the scores of a model, summed over samples.
    """

    about: str
    samples: int
    tokens: int
    least: int
    group: Literal["mean", "max"]
    sums: Callable[[Loaded, TokenSource, int, int, Report], Scores]


def retrieval(loaded: Loaded, source: TokenSource, count: int, tokens: int, report: Report) -> Scores:
    """Return the attention that queries which answer pay to the needle."""
    return _marked(loaded, needles(source, count, tokens), report)


def repetition(loaded: Loaded, source: TokenSource, count: int, tokens: int, report: Report) -> Scores:
    """Return the attention paid to earlier repetitions of a token, and to what followed them."""
    return _marked(loaded, repetitions(source, count, tokens), report)


def _marked(loaded: Loaded, samples: Sequence[Marked], report: Report) -> Scores:
    scores: Scores = {}
    for index, sample in enumerate(samples):
        ids = torch.tensor([sample.ids], device=loaded.view.device)

        def watch(
            layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, sample: Marked = sample
        ) -> None:
            for name, found in paid(sample, query, key, scale, window).items():
                _add(scores, name, layer, found, len(loaded.view.layers))

        forward(loaded.model.base_model, ids, watch)  # type: ignore[arg-type]
        report((index + 1) / len(samples))
    return scores


def paid(sample: Marked, query: Tensor, key: Tensor, scale: float, window: int) -> Mapping[str, Tensor]:
    """Return the attention that a sample's queries pay to what counts, their mean, by name [G, H / G].

    Args:
        sample: whose queries and entries count.
        query: [1, H, T, D].
        key: [1, G, T, D].
        scale: factor of the logits.
        window: of a sliding layer; 0 for none.
    """
    entry = torch.arange(query.shape[2], device=query.device)
    rows = slice(sample.start, sample.stop)
    position, at = entry[None, None], entry[None, rows]
    out: dict[str, Tensor] = {}
    blocks = attention_blocks(query[:, :, rows], key, scale, position=position, query_position=at, window=window)
    for weights, where in blocks:
        for name, marked in sample.marks(where[0][:, None], entry).items():
            found = (weights[0] * marked[..., : weights.shape[-1]]).sum(dim=(-2, -1)) / (sample.stop - sample.start)
            out[name] = out[name] + found if name in out else found
    return out


def gate(loaded: Loaded, source: TokenSource, count: int, tokens: int, report: Report) -> Scores:
    """Return the area under the cumulated attention of a head's mean query over its mean key at many positions.

    Raises:
        ValueError: for a model whose keys are not rotated: the mean key is the same at all positions.
    """
    scores: Scores = {}
    shapes = loaded.view.layers
    if loaded.view.has_learned_positions:
        raise ValueError("gates compare a mean key at different rotations, and the keys of this model are not rotated.")
    for index, ids in enumerate(source.windows(count, tokens)):

        def watch(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> None:
            _add(scores, "gate", layer, area(query, key, scale, shapes[layer]), len(shapes))

        forward(loaded.model.base_model, torch.tensor([ids], device=loaded.view.device), watch)  # type: ignore[arg-type]
        report((index + 1) / count)
    return scores


def area(query: Tensor, key: Tensor, scale: float, shape: LayerShape) -> Tensor:
    """Return the area of each head [G, H / G]: 1 if all attention is on the first entry, near 0 if on the last.

    Args:
        query: of one text [1, H, T, D], rotated.
        key: [1, G, T, D], rotated.
        scale: factor of the logits.
        shape: of the layer.
    """
    assert shape.rotary is not None
    wide = torch.promote_types(query.dtype, torch.float32)
    back = -torch.arange(query.shape[2], device=query.device)[None, None]
    mean_query, mean_key = (
        turn(rotated.to(wide), back, shape.rotary).mean(dim=2, keepdim=True) for rotated in (query, key)
    )
    at = torch.arange(GATE_POSITIONS, device=query.device)[None, None]
    keys = turn(mean_key.expand(-1, -1, GATE_POSITIONS, -1), at, shape.rotary)
    last = turn(mean_query, GATE_POSITIONS - 1, shape.rotary)
    rows = last.unflatten(1, (key.shape[1], -1)).squeeze(3)  # [1, G, H / G, D]
    weights = (rows @ keys.transpose(-1, -2) * scale).softmax(dim=-1)
    found: Tensor = weights[0].cumsum(dim=-1).mean(dim=-1)
    return found


def _add(scores: Scores, name: str, layer: int, found: Tensor, layers: int) -> None:
    """Add what was found in one sample, in float64 on the host."""
    tables = scores.setdefault(name, [torch.zeros(())] * layers)
    tables[layer] = tables[layer] + found.double().cpu()


MEASURES: Mapping[str, Measure] = {
    "retrieval": Measure(
        about="attention paid to the needle", samples=32, tokens=2048, least=256, group="mean", sums=retrieval
    ),
    "gate": Measure(
        about="area under the cumulated attention", samples=50, tokens=1000, least=16, group="mean", sums=gate
    ),
    "repetition": Measure(
        about="attention paid to repetitions", samples=4, tokens=10_000, least=16, group="max", sums=repetition
    ),
}


def measure(
    kind: str, name: str, loaded: Loaded, source: TokenSource, *, samples: int, tokens: int, report: Report
) -> HeadScores:
    """Score the heads of a model.

    Args:
        kind: a key of `MEASURES`.
        name: of the model.
        loaded: the model, switched to the watched attention.
        source: of texts and random ids.
        samples: 0 for the measure's own number.
        tokens: per sample; 0 for the measure's own number, or as many as the model reads.
        report: told how much is done.

    Raises:
        ValueError: if the model or the samples do not fit the measure.
    """
    chosen = MEASURES[kind]
    usual = (chosen.samples, chosen.tokens)
    count, length = how_much(f"{kind} scores", loaded.view, samples, tokens, usual=usual, least=chosen.least)
    with torch.no_grad():
        sums = chosen.sums(loaded, source, count, length, report)
    tables = {}
    for title, layers in sums.items():
        means = [layer / count for layer in layers]
        grouped = [mean.amax(dim=1) if chosen.group == "max" else mean.mean(dim=1) for mean in means]
        tables[title] = tuple(tuple(round(score, DIGITS) for score in row.clamp(0, 1).tolist()) for row in grouped)
    return HeadScores(
        kind=kind,
        **about(name, loaded, source, count, length),
        scores=tables,
    )
