"""Tables that keys and values are rounded to, fitted so that the loss of a model changes least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvbench.cache.codecs.codebooks import BITS, Codebooks, Rows
from kvbench.cache.codecs.nonuniform import between, of_each, unit
from kvbench.cache.rotary import turned_back
from kvbench.calibration.reading import Report, about, how_much, with_gradients
from kvbench.models.load import Loaded
from kvbench.workloads.source import TokenSource

SAMPLES = 16  # unless the user says otherwise
TOKENS = 2048  # of each, or as many as the model reads
KEPT = 32768  # tokens at most that tables are made from, evenly spaced: all of the usual ones
OUTLIERS = 0.01  # share of a channel's, or a token's, numbers
SKIPPED = 5  # first tokens, whose keys are like no others
ROUNDS = 1000  # at most, of fitting a table
LEAST = 1e-9  # of all weight, below which a level has none
DIGITS = 5  # that count, of a number in the file


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Keys, or values, of a layer.

    Args:
        numbers: [N, G * D], of keys as they were before rotation.
        gradient: of the loss of each text, as the numbers.
    """

    numbers: Tensor
    gradient: Tensor


def codebooks(
    name: str, loaded: Loaded, source: TokenSource, *, samples: int, tokens: int, report: Report
) -> Codebooks:
    """Read texts forwards and backwards and fit tables to the keys and values of each layer.

    Source: Hooper et al. (KVQuant), arXiv:2401.18079, sec. 3.2: k-means weighted by the diagonal of the Fisher
        information, squares of gradients.

    Args:
        name: of the model.
        loaded: the model, switched to the watched attention.
        source: of texts, or of random ids.
        samples: 0 for the usual number.
        tokens: per sample; 0 for the usual number.
        report: told how much is done.

    Raises:
        ValueError: if the samples make no sense.
    """
    usual = (SAMPLES, TOKENS)
    count, length = how_much("codebooks", loaded.view, samples, tokens, usual=usual, least=SKIPPED + 2)
    layers = seen(loaded, source.windows(count, length), max(1, count * length // KEPT), report)
    limits = [np.quantile(keys.numbers.numpy(), (OUTLIERS / 2, 1 - OUTLIERS / 2), axis=0) for keys, _ in layers]
    lower, upper = (tuple(_short(both[side]) for both in limits) for side in (0, 1))
    found = [
        (of_channels(keys, torch.tensor(low), torch.tensor(high)), of_tokens(values))
        for (keys, values), low, high in zip(layers, lower, upper, strict=True)
    ]
    keys, values = ({str(bits): _fitted([side[at] for side in found], bits) for bits in BITS} for at in (0, 1))
    return Codebooks(
        **about(name, loaded, source, count, length),
        outliers=OUTLIERS,
        skipped=SKIPPED,
        lower=lower,
        upper=upper,
        keys=keys,
        values=values,
    )


def seen(loaded: Loaded, texts: Sequence[Sequence[int]], step: int, report: Report) -> list[tuple[Seen, Seen]]:
    """Return keys and values of each layer, of every so many tokens of texts."""
    shapes = loaded.view.layers
    gathered: list[list[list[Tensor]]] = [[[], [], [], []] for _ in shapes]
    for index, ids in enumerate(texts):
        row = torch.tensor([ids], device=loaded.view.device)
        position = torch.arange(len(ids), device=loaded.view.device)[None, None]
        layers = zip(shapes, gathered, with_gradients(loaded, row), strict=True)
        for shape, mine, (_, key, value, of_key, of_value) in layers:
            keys = (turned_back(each, position, shape.rotary) for each in (key, of_key))
            for kept, each in zip(mine, (*keys, value, of_value), strict=True):
                kept.append(each[0, :, SKIPPED::step].transpose(0, 1).flatten(1).float().cpu())
        report((index + 1) / len(texts))
    joined = [[torch.cat(kept) for kept in layer] for layer in gathered]
    return [
        (Seen(numbers=key, gradient=of_key), Seen(numbers=value, gradient=of_value))
        for key, of_key, value, of_value in joined
    ]


def of_channels(keys: Seen, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys between their channel's limits, from -1 to 1, and what each of them weighs [n]."""
    scale, low = between(lower, upper)
    numbers = unit(keys.numbers, scale, low)
    inside = numbers.abs() <= 1
    return numbers[inside], (keys.gradient * scale.float()).square()[inside]


def of_tokens(values: Seen) -> tuple[Tensor, Tensor]:
    """Return values from -1 to 1, their token's outliers left out, and what each of them weighs [n]."""
    channel, scale, low = of_each(values.numbers, max(1, round(OUTLIERS * values.numbers.shape[1])))
    inside = torch.ones_like(values.numbers, dtype=torch.bool).scatter(1, channel, value=False)
    return unit(values.numbers, scale, low)[inside], (values.gradient * scale.float()).square()[inside]


def fit(numbers: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Return 2^bits levels, ascending, such that the squares of what rounding does, by weight, are few.

    Lloyd's means of what is nearest, from levels that are evenly spaced from -1 to 1, so that they end with no more
    than these, and from levels with as much weight between any two; the better of both.

    Args:
        numbers: [n].
        weights: [n].
        bits: of a code.
    """
    order = numbers.argsort()
    ascending, mass = numbers.double()[order], weights.double()[order]
    mass /= mass.sum().clamp(min=torch.finfo(torch.float64).tiny)
    share, moment = (torch.nn.functional.pad(each.cumsum(0), (1, 0)) for each in (mass, mass * ascending))
    middle = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    starts = (
        torch.linspace(-1, 1, 2**bits, dtype=torch.float64),
        ascending[torch.searchsorted(share[1:-1], middle)],
    )
    ends = [_lloyd(levels, ascending, share, moment) for levels in starts]
    return max(ends, key=lambda end: end[1])[0]


def _lloyd(levels: Tensor, ascending: Tensor, share: Tensor, moment: Tensor) -> tuple[Tensor, float]:
    """Return where levels end, and by how much less than with one level at 0 the squares then are."""
    for _ in range(ROUNDS):
        cuts = torch.searchsorted(ascending, (levels[1:] + levels[:-1]) / 2)
        cuts = torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=len(ascending))
        mine, sums = share[cuts].diff(), moment[cuts].diff()
        new = torch.where(mine > LEAST, sums / mine, levels)  # a level that nothing is near to stays
        if torch.equal(new, levels):
            break
        levels = new
    return levels, float((mine * levels.square()).sum())


def _fitted(sides: Sequence[tuple[Tensor, Tensor]], bits: int) -> Rows:
    return tuple(_short(fit(numbers, weights, bits).numpy()) for numbers, weights in sides)


def _short(row: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{number:.{DIGITS}g}") for number in row)
