"""What all that is measured on texts has in common: how much is read, what is said of it, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvbench.calibrated import fingerprint
from kvbench.calibration.watching import forward
from kvbench.models.load import Loaded
from kvbench.types import ModelView
from kvbench.workloads.source import TokenSource

Report = Callable[[float], None]


def how_much(
    what: str, view: ModelView, samples: int, tokens: int, *, usual: tuple[int, int], least: int
) -> tuple[int, int]:
    """Return how many texts are read, and how many tokens of each.

    Args:
        what: is measured.
        view: of the model.
        samples: asked for; 0 for the usual number.
        tokens: asked for, per sample; 0 for the usual number, or as many as the model reads.
        usual: samples and tokens.
        least: tokens that a sample needs.

    Raises:
        ValueError: if there is nothing to read, or more than the model can.
    """
    count, length = samples or usual[0], tokens or min(usual[1], view.max_positions)
    if count < 1 or not least <= length <= view.max_positions:
        raise ValueError(
            f"{what} need --samples of at least 1 and --tokens from {least} to what the model reads, "
            f"{view.max_positions}; got {count} and {length}."
        )
    return count, length


def about(name: str, loaded: Loaded, source: TokenSource, samples: int, tokens: int) -> dict[str, Any]:
    """Return what a file says of the model and of the texts, as `Calibrated` takes it."""
    return {
        "model": name,
        "revision": loaded.revision,
        "weights": fingerprint(loaded.view),
        "seed": source.seed,
        "samples": samples,
        "tokens": tokens,
    }


def with_gradients(loaded: Loaded, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Return each layer's queries, keys and values, and gradients by the last two of the loss of a text's next tokens.

    Args:
        loaded: the model, switched to the watched attention.
        ids: [1, T].

    Returns:
        Queries [1, H, T, D] and keys [1, G, T, D], rotated, values, and the gradients of these two, layer by layer.
    """
    sides: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def watch(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> None:
        for side in (key, value):
            if not side.requires_grad:  # nothing before it has a gradient
                side.requires_grad_()
        sides[layer] = (query, key, value)

    with torch.enable_grad():
        logits = forward(loaded.model, ids, watch).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        queries, keys, values = zip(*(sides[layer] for layer in range(len(sides))), strict=True)
        gradients = torch.autograd.grad(loss, [*keys, *values])
    detached = ([side.detach() for side in each] for each in (queries, keys, values))
    return list(zip(*detached, gradients[: len(keys)], gradients[len(keys) :], strict=True))
