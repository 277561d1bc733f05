"""What rounding the keys, or the values, of one layer to few bits does to a model's predictions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kvbench.cache.codecs.bits import BITS, BitErrors
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.calibration.reading import Report, about, how_much
from kvbench.calibration.watching import Watch, attend, forward
from kvbench.kernels.packed import Packed
from kvbench.models.load import Loaded
from kvbench.workloads.source import TokenSource

SAMPLES = 3  # unless the user says otherwise
TOKENS = 1024  # of each, or as many as the model reads
READING = 128  # last tokens of each, whose predictions count and which are exact; whole groups before them are rounded
GROUP = 32  # numbers that share a scale, tokens of a channel or channels of a token
DIGITS = 4  # that count, of an error

Side = Literal["tokens", "channels", "values"]
SIDES: tuple[Side, ...] = ("tokens", "channels", "values")  # keys by tokens and by channels, values by channels


def bit_errors(
    name: str, loaded: Loaded, source: TokenSource, *, samples: int, tokens: int, report: Report
) -> BitErrors:
    """Read texts with one side of one layer rounded at a time, and return how far the last predictions move.

    Earlier tokens are read as if nothing was rounded, and the last ones are exact, as in a cache that packs a prompt.

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
    view = loaded.view
    usual = (SAMPLES, TOKENS)
    count, length = how_much("errors by bits", view, samples, tokens, usual=usual, least=GROUP + READING)
    errors = {side: torch.zeros(len(view.layers), len(BITS), dtype=torch.float64) for side in SIDES}
    with torch.no_grad():
        for index, ids in enumerate(source.windows(count, length)):
            row = torch.tensor([ids], device=view.device)
            want = _predictions(loaded, row, lambda *seen: None)
            for layer in range(len(view.layers)):
                for side in SIDES:
                    for at, bits in enumerate(BITS):
                        got = _predictions(loaded, row, rounding(layer, side, bits))
                        errors[side][layer, at] += divergence(want, got) / count
                report((index + (layer + 1) / len(view.layers)) / count)
    return BitErrors(
        **about(name, loaded, source, count, length),
        group=GROUP,
        errors={side: _short(found) for side, found in errors.items()},
    )


def rounding(layer: int, side: Side, bits: int) -> Watch:
    """Return what rounds the keys, or the values, of a layer, for the queries that come after them."""

    def watch(at: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor | None:
        if at != layer:
            return None
        packed = (key.shape[2] - READING) // GROUP * GROUP
        before = attend(query[:, :, :packed], key[:, :, :packed], value[:, :, :packed], scale, window)
        if side == "values":
            value = torch.cat([rounded(value[:, :, :packed], bits, "channels"), value[:, :, packed:]], dim=2)
        else:
            key = torch.cat([rounded(key[:, :, :packed], bits, side), key[:, :, packed:]], dim=2)
        return torch.cat([before, attend(query[:, :, packed:], key, value, scale, window)], dim=2)

    return watch


def rounded(entries: Tensor, bits: int, along: Literal["tokens", "channels"]) -> Tensor:
    """Return entries [B, G, T, D] as the codes of so many bits stand for."""
    how = Quantiser(bits=bits, along=along, group=GROUP, symmetric=False, levels="integers", clip=1.0, scales="float16")
    packed = Packed(how.form(entries.shape[3]), *how.encode(entries), "reference")
    return packed.dense(0, entries.shape[2], entries.dtype)


def divergence(want: Tensor, got: Tensor) -> float:
    """Return the mean divergence of predictions [T, V], log probabilities, from those that are wanted, in nats."""
    return max(0.0, (want.exp() * (want - got)).sum(dim=-1).mean().item())


def _predictions(loaded: Loaded, row: Tensor, watch: Watch) -> Tensor:
    logits: Tensor = forward(loaded.model, row, watch).logits[0, -READING:]
    return logits.double().log_softmax(dim=-1)


def _short(errors: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{error:.{DIGITS}g}") for error in row) for row in errors.tolist())
