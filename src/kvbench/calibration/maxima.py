"""How large each channel gets that enters the linear layers behind a model's norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kvbench.calibration.reading import Report, about, how_much
from kvbench.calibration.watching import forward
from kvbench.models.load import Loaded
from kvbench.strategies.transform.maxima import ChannelMaxima
from kvbench.workloads.source import TokenSource

SAMPLES = 64  # unless the user says otherwise
TOKENS = 512  # of each, or as many as the model reads
DIGITS = 6  # that count, of a maximum


def channel_maxima(
    name: str, loaded: Loaded, source: TokenSource, *, samples: int, tokens: int, report: Report
) -> ChannelMaxima:
    """Read texts and return the largest magnitude of each channel behind each norm.

    Args:
        name: of the model.
        loaded: the model, switched to the watched attention.
        source: of texts, or of random ids.
        samples: 0 for the usual number.
        tokens: per sample; 0 for the usual number.
        report: told how much is done.

    Raises:
        ValueError: if the norms of the model cannot be told, or the samples make no sense.
    """
    if not loaded.view.norms:
        raise ValueError(f"which norms of {name} only linear layers read cannot be told: it cannot be smoothed.")
    count, length = how_much("channel maxima", loaded.view, samples, tokens, usual=(SAMPLES, TOKENS), least=1)
    with torch.no_grad(), _noted(loaded) as found:
        for index, ids in enumerate(source.windows(count, length)):
            forward(loaded.model.base_model, torch.tensor([ids], device=loaded.view.device), lambda *seen: None)  # type: ignore[arg-type]
            report((index + 1) / count)
    return ChannelMaxima(
        **about(name, loaded, source, count, length),
        maxima=tuple(tuple(float(f"{value:.{DIGITS}g}") for value in row.tolist()) for row in found),
    )


@contextmanager
def _noted(loaded: Loaded) -> Iterator[list[Tensor]]:
    """Note in a list per norm the largest magnitude of each channel [width] of what goes into its first reader."""
    norms = loaded.view.norms
    found = [torch.zeros(norm.width, dtype=torch.float64) for norm in norms]

    def hook(at: int) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, inputs: Any) -> None:
            largest = inputs[0].abs().flatten(0, -2).amax(dim=0)
            found[at] = torch.maximum(found[at], largest.double().cpu())

        return note

    readers = [loaded.model.get_submodule(norm.readers[0]) for norm in norms]
    handles = [reader.register_forward_pre_hook(hook(at)) for at, reader in enumerate(readers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
